"""Menus and format strings go line by line; sentences, pairs and code stay as they are."""

from polylm_jax.data.clean.scraps import without

MENU = (
    "File\nSave as…\nThe file %(name)s is not there.\n\nPlease close the window before you go.\nNo!"
)


def test_menus_and_format_strings_go_and_sentences_stay():
    text, scraps = without(MENU, 30, "en")
    assert text == "Save as…\n\nPlease close the window before you go.\nNo!"
    assert scraps == 2
    assert without(text, 30, "en") == (text, 0)


def test_letters_of_several_bytes_count_as_several():
    line = "请先关闭窗口然后再继续"
    assert without(f"文件\n{line}", 30, "zh") == (line, 1)


def test_pairs_go_whole_and_code_stays():
    pairs = "Open %s\nÖffne %s\n\nYes\nJa"
    assert without(pairs, 30, "en-de") == ("Yes\nJa", 1)
    assert without(MENU, 30, "code") == (MENU, 0)
    assert without(MENU, 0, "en") == (MENU, 0)


def test_all_kinds_of_format_strings_are_known():
    for line in (
        "%s of it",
        "%(a)s",
        "{0} of {1}",
        "${x} dollars",
        "$[x] a",
        "a <b>b</b> c",
        "a&nbsp;b",
    ):
        assert without(f"{line} and some more words that are long enough", 10, "en")[1] == 1
    for line in ("It costs 5 % of $3", "a < b & c > d", "{ }", "1 %, too"):
        assert without(f"{line} and some more words that are long enough", 10, "en")[1] == 0
