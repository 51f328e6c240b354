"""Documents to measure: our sentences in 18 languages, made-up noise, and what is awkward."""

import random

from tests.data.sentences import SENTENCES

AWKWARD = [
    "",
    " \n\t\n ",
    "!!!",
    "\u0301\u0301a\u0301 \u0301b",
    "👩‍👧 ❤️ 1️⃣ می‌خواهم",
    "ก็ a่า้bกำ 12ก3",
    "a\ud800b \x00 \ufeff\u202e\u00adc",
    "one\r\n\r\ntwo\n \nthree\nthree\u2028four",
    "ＦＵＬＬ　ｗｉｄｔｈ ﾊﾝｶｸ Ｉ İ ı ﻻ ﺍ ２٣४",
    "東京は日本の首都です。\n東京は日本の首都です。",
    "word " * 300,
]
# letters, marks, digits, marks of sentences, symbols, spaces, invisible ones, scripts
ALPHABET = "aab bB.,!…#-•*|{}()%s/:@1 2\n\n \t\u0301\u200d\u00ad漢字かなカーไทย้กש한글жÄé👍0é。؟"


def documents(noise: int = 60, seed: int = 0) -> list[str]:
    """Real, made-up and awkward documents, with some that repeat themselves."""
    chance = random.Random(seed)
    real = ["\n".join(chance.choices(some, k=len(some))) for some in SENTENCES.values()]
    made = ["".join(chance.choices(ALPHABET, k=chance.randrange(200))) for _ in range(noise)]
    words = [" ".join(chance.choices(["to", "be", "or", "not", "7"], k=60)) for _ in range(10)]
    texts = [*real, *AWKWARD, *made, *words]
    chance.shuffle(texts)
    return texts
