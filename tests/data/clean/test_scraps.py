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
        "%5d of",
        "%-8s",
        "%.2f",
        "%1$s",
        "%02x",
        "at%s",
        "%1 of %2",
        "at %1.",
        "the 1%(nth)s one",
    ):
        assert without(f"{line} and some more words that are long enough", 10, "en")[1] == 1
    for line in ("It costs 5 % of $3", "a < b & c > d", "{ }", "1 %, too"):
        assert without(f"{line} and some more words that are long enough", 10, "en")[1] == 0


def test_shares_are_no_format_strings_whatever_follows_them():
    for line in (
        "去年收入增长了50%的公司共有三十家。",
        "約30%が反対しています。",
        "销售额增长50%(同比)，利润下降。",
        "응답자의 30%는 반대한다고 말했습니다.",
        "ร้อยละ 50%ของคนไทย ชอบอาหารรสเผ็ดมาก",
        "More than 50%of them went there yesterday.",
        "Nüfusun %50'si, yani %8,5 daha fazlası şehirlerde yaşıyor.",
        "Ülkenin %50si bunu biliyor.",
        "٥٠%من السكان يعيشون في المدن الكبيرة.",
    ):
        assert without(line, 30, "en") == (line, 0)
    for language in ("tr", "und", "en-tr"):
        line = "Ülkenin %5'i bunu biliyor, %5 kadarı bilmiyor.\nOf it %5 knows."
        assert without(line, 30, language) == (line, 0)


def test_a_sentence_ends_as_its_script_has_it_and_as_its_quotes_do():
    for line in ("བཀྲ་ཤིས།", "Ոչ։", "አይ።", "ဟုတ်။", "„Nein!“", "»Ja.«", "‚Nie.‘", "《是。》", "ߍ߹"):
        assert without(line, 30, "und") == (line, 0)
    assert without("Ոչ", 30, "hy") == ("", 1)
