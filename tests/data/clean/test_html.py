"""Pages of HTML: their charset, their main text, and what those that harm their reader cost."""

import os
import signal

import pytest

from polylm_jax.data.clean import html

pytest.importorskip("resiliparse")

META = "<html><head><meta charset={}></head><body>{}"
EQUIV = '<meta http-equiv="Content-Type" content="text/html; charset={}">{}'
CYRILLIC = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 3
JAPANESE = "いろはにほへと ちりぬるを ①②髙﨑 " * 3
FRENCH = "Dès Noël où un zéphyr haï me vêt – « œuvre » à 5 €. " * 3


@pytest.mark.parametrize(
    ("page", "header", "text"),
    [
        (CYRILLIC.encode("koi8-r"), "text/html; charset=KOI8-R", CYRILLIC),
        (CYRILLIC.encode("cp1251"), 'text/html; charset="windows-1251"', CYRILLIC),
        (META.format("cp1251", CYRILLIC).encode("cp1251"), "text/html", CYRILLIC),
        (EQUIV.format("shift_jis", JAPANESE).encode("cp932"), "", JAPANESE),
        (JAPANESE.encode("cp932"), "text/html; charset=Shift_JIS", JAPANESE),
        (JAPANESE[:9].encode("euc_jp"), "text/html; charset=EUC-JP", JAPANESE[:9]),
        ("联通".encode("gbk"), "text/html; charset=gb2312", "联通"),  # it looks like UTF-8
        (FRENCH.encode("cp1252"), "text/html; charset=iso-8859-1", FRENCH),
        # who says Latin-1 of UTF-8 is not believed, nor who names what there is not
        (META.format("latin1", CYRILLIC).encode(), "text/html; charset=iso-8859-1", CYRILLIC),
        (CYRILLIC.encode(), "text/html; charset=nonsense", CYRILLIC),
        # nothing is said
        (CYRILLIC.encode("cp1251"), "", CYRILLIC),
        (("\ufeff" + JAPANESE).encode("utf-16-le"), "text/html; charset=utf-8", JAPANESE),
        (("\ufeff" + FRENCH).encode(), "text/html; charset=cp1252", FRENCH),
        (CYRILLIC.encode() + b"\xff", "text/html; charset=utf-8", CYRILLIC),
        (b"", "", ""),
    ],
)
def test_a_page_is_decoded_by_what_it_says_and_what_it_is(page, header, text):
    assert text in html.decoded(page, header)


@pytest.fixture
def children(monkeypatch):
    """Of a short life; the next test's are others."""
    monkeypatch.setattr(html, "SECONDS", 0.4)
    monkeypatch.setattr(html, "_children", {})
    yield html._children
    for child in html._children.values():
        child._end()


def test_the_main_text_of_pages_by_one_child(children):
    menu = "<nav><ul><li><a href=/>Home</a><li><a href=/b>News</a></ul></nav>"
    body = f"{menu}<main><h1>Head</h1><p>{CYRILLIC}<p>{JAPANESE}<table></main><script>x=1</script>"
    page = META.format("utf-8", body).encode()
    text = html.extract(page, "text/html")
    assert text == f"Head\n\n{CYRILLIC.strip()}\n\n{JAPANESE.strip()}"
    [child] = children.values()
    assert html.extract(page * 30, "text/html").startswith(text)
    assert list(children.values()) == [child]
    assert html.extract(b"", "") == ""
    os.kill(child._process.pid, signal.SIGSEGV)
    child._process.wait()
    assert html.extract(page, "text/html") == text


def test_a_page_that_takes_too_long_is_a_verdict_and_the_next_is_read(children):
    for _ in range(2):
        with pytest.raises(html.Unreadable, match=r"takes more than 0\.4 s to read"):
            html.extract(b"<div>" * 200_000)
        assert html.extract(b"<p>A page of some words.") == "A page of some words."


def test_a_page_that_takes_too_much_memory_is_a_verdict(children, monkeypatch):
    monkeypatch.setattr(html, "MEMORY", 2**28)
    monkeypatch.setattr(html, "SECONDS", 60)  # memory ends it, on a slow processor, too
    with pytest.raises(html.Unreadable, match=r"takes more than 0\.25 GiB|crashes the reader"):
        html.extract(b"<p>a" * 1_000_000)
    assert html.extract(b"<p>A page of some words.") == "A page of some words."
