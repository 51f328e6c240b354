"""Masks what belongs to somebody: e-mail addresses and public IP addresses, as FineWeb does.

Telephone numbers stay: nothing tells them from an ISBN or a date in 18 languages.
"""

import ipaddress
import re

# addresses that belong to nobody: those set apart for documents (RFC 2606, 5737 and 3849)
EMAIL = "email@example.com"
IPV4, IPV6 = "192.0.2.1", "2001:db8::1"

# Letters of scripts that put no space between words, or none before what is added to one (Korean).
# There an address stands in the midst of text, so no part of one is of both kinds of letters.
_CLOSE = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30fa\u30fc-\ud7ff\uf900-\ufaff"
    "\uff66-\uffdc\U00020000-\U0003ffff"
)
_WORD = r"\w\u0900-\u0963\u0966-\u0dff"  # vowel signs of India are no \w
_LETTER = rf"(?![{_CLOSE}_])[{_WORD}]"
_SIGNS = r"!#$%&'*+/=?^`{|}~-"
_LOCAL = rf"(?:(?![{_CLOSE}])[{_WORD}{_SIGNS}])"
# local parts and labels have lengths so that no text makes the search take longer than its size
_EMAIL = re.compile(
    rf"(?:(?<![{_WORD}.{_SIGNS}])|(?<=[{_CLOSE}]))"
    rf"(?:{_LOCAL}{{1,64}}(?:\.{_LOCAL}{{1,64}}){{0,8}}|(?<!\w)[{_CLOSE}]{{1,64}})@"
    rf"(?:(?:{_LETTER}(?:(?:{_LETTER}|[-_]){{0,61}}{_LETTER})?|[{_CLOSE}]{{1,63}})\.){{1,8}}"
    rf"(?:(?:xn--[a-z0-9-]{{2,59}}|(?:(?!\d){_LETTER}){{2,24}})(?!{_LETTER}|_)"
    rf"|[{_CLOSE}]{{2,24}}(?!\w))(?![@-])"
)
_IPV4 = re.compile(
    r"(?:(?<![\w.-])|(?<=\.\d-)|(?<=\.\d\d-)|(?<=\.\d\d\d-))"
    r"\d{1,3}(?:\.\d{1,3}){3}(?!\w|-(?!\d+\.\d)|\.\d)",
    re.ASCII,
)
_IPV6 = re.compile(
    r"(?:(?<![\w:.])|(?<=[g-z]:))"
    r"(?:(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:){1,7}:)(?![\w:]|\.\d)",
    re.ASCII | re.IGNORECASE,
)
# what stands in each of them, and begins with a sign that is found many times as fast
_IN_IPV4 = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d", re.ASCII)
_IN_IPV6 = re.compile(r":[0-9a-fA-F]{0,4}:")
_UNICAST = ipaddress.ip_network("2000::/3")  # all that is given out; a::b may be of a program
# of four numbers that follow it as of a version, in the languages of the paper
_VERSION = re.compile(
    r"(?:\bv|\bver|versi[oó]n[es]?|vers[ãa]o|versie?|wersj[aięą]|верси[яиюей]+|sürümü?|phiên bản|"
    r"إصدار|גרס[הת]|เวอร์ชัน|版本|バージョン|버전|release|build|firmware|oid|section|§)[\s.:#]*\Z",
    re.IGNORECASE,
)
_BEFORE = 16  # characters that are looked at for such a word


def mask(text: str) -> tuple[str, dict[str, int]]:
    """The text with addresses that belong to nobody in place of its own, and counts of each kind.

    Only public IP addresses are masked: 192.168.0.1 and others of RFC 1918 stay, and "version
    1.2.3.4", which is none.
    """
    counts = {"email": 0, "ip": 0}

    def address(found: re.Match[str], by: str) -> str:
        before = found.string[max(found.start() - _BEFORE, 0) : found.start()]
        if not _public(found[0]) or _VERSION.search(before):
            return found[0]
        counts["ip"] += 1
        return by

    if "@" in text:
        text, counts["email"] = _EMAIL.subn(EMAIL, text)
    if _IN_IPV4.search(text):
        text = _IPV4.sub(lambda found: address(found, IPV4), text)
    if _IN_IPV6.search(text):
        text = _IPV6.sub(lambda found: address(found, IPV6), text)
    return text, {kind: number for kind, number in counts.items() if number}


def _public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and (found.version == 4 or found in _UNICAST)
