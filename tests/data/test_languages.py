"""What the names of sources mean, for languages that the paper never heard of."""

import numpy as np
import pytest

from polylm_jax.data.languages import (
    LANGUAGES,
    NON_ENGLISH,
    in_order,
    is_bilingual,
    is_language,
    is_mixed,
    languages_of,
    name_of,
    non_english_share,
    source_named,
)


@pytest.mark.parametrize(
    ("folder", "source", "name"),
    [
        ("hi", "hi", "Hindi (hi)"),
        ("swh", "swh", "Swahili (swh)"),
        ("ger", "ger", "German (ger)"),
        ("pt-BR", "pt-BR", "Portuguese (pt-BR)"),
        ("es_419", "es-419", "Spanish (es-419)"),
        ("zh-Hant", "zh-Hant", "Chinese (zh-Hant)"),
        ("sr_Latn", "sr-Latn", "Serbian (sr-Latn)"),
        ("zh_Hant_TW", "zh-Hant-TW", "Chinese (zh-Hant-TW)"),
        ("en-de", "en-de", "English–German"),
        ("hi-swh", "hi-swh", "Hindi–Swahili"),
        ("pt-br", "pt-br", "Portuguese–Breton"),
        ("en-pt-BR", "en-pt-BR", "English–Portuguese (pt-BR)"),
        ("zho_Hans-en", "zho-Hans-en", "Chinese (zho-Hans)–English"),
        ("code", "code", "code"),
    ],
)
def test_a_folders_name_is_a_source(folder, source, name):
    assert source_named(folder) == source
    assert name_of(source) == name
    assert is_bilingual(source) == ("–" in name)
    assert is_language(source) == ("(" in name and "–" not in name)


@pytest.mark.parametrize(
    "folder",
    ["", "xx", "qqq", "klingon", "EN", "De", "zh-hant", "my_data", "en-de-fr", "en--de", "h1", "é"],
)
def test_what_is_no_source(folder):
    assert source_named(folder) is None


def test_the_papers_names_are_the_librarys():
    iso639 = pytest.importorskip("iso639")
    assert {code: iso639.Language.from_part1(code).name for code in LANGUAGES} == {
        code: language.name for code, language in LANGUAGES.items()
    }


def test_order_and_parts():
    pairs = [f"en-{code}" for code in NON_ENGLISH]
    papers = [*LANGUAGES, *pairs, "code"]
    assert in_order(sorted(papers)) == papers
    assert in_order(["code", "sw-hi", "sw", "en-hi", "ko", "cs", "en"]) == [
        *("en", "ko", "cs", "sw", "en-hi", "sw-hi", "code"),
    ]
    assert languages_of("en-pt-BR") == ("en", "pt-BR")
    assert languages_of("code") == ()


def test_the_share_is_of_rows_in_one_language():
    sources = ["en", "hi", "zh-Hant", "code", "en-hi"]
    assert non_english_share(sources, np.array([3, 1, 2, 9, 9])) == 0.5
    assert non_english_share(sources, np.zeros((2, 5))).tolist() == [0, 0]
    assert is_mixed(sources)
    assert not is_mixed(["en", "code", "en-hi"])
    assert not is_mixed(["hi", "sw", "cs"])
