"""Masks what belongs to somebody: e-mail addresses and public IP addresses, as FineWeb does.

Telephone numbers stay: nothing tells them from an ISBN or a date in 18 languages.
"""

import ipaddress
import re

# addresses that belong to nobody: those set apart for documents (RFC 2606, 5737 and 3849)
EMAIL = "email@example.com"
IPV4, IPV6 = "192.0.2.1", "2001:db8::1"

# local parts and labels have lengths so that no text makes the search take longer than its size
_EMAIL = re.compile(
    r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w!#$%&'*+/=?^`{|}~-]{1,64}(?:\.[\w!#$%&'*+/=?^`{|}~-]{1,64}){0,8}"
    r"@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w@-])"
)
_IPV4 = re.compile(r"(?<![\w.:-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}(?![\w:]|\.\d)", re.ASCII | re.IGNORECASE
)
# what stands in each of them, and begins with a sign that is found many times as fast
_IN_IPV4 = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d", re.ASCII)
_IN_IPV6 = re.compile(r":[0-9a-fA-F]{0,4}:[0-9a-fA-F]")


def mask(text: str) -> tuple[str, dict[str, int]]:
    """The text with addresses that belong to nobody in place of its own, and counts of each kind.

    Only public IP addresses are masked: 192.168.0.1 and version 1.2.3.4 of RFC 1918 and the like
    stay.
    """
    counts = {"email": 0, "ip": 0}

    def address(found: re.Match[str], by: str) -> str:
        if not _public(found[0]):
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
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
