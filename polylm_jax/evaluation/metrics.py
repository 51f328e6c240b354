"""How good answers are: F1 of their words, and ROUGE, BLEU and chrF++ by the usual libraries.

Numbers are as those have them: F1 and ROUGE from 0 to 1, BLEU and chrF++ from 0 to 100. sacrebleu
and rouge-score are in the extra [eval].
"""

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from polylm_jax.errors import UserError

# sacrebleu's tokenizers of languages whose words 13a does not part; the mecabs come with its extras
BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
ROUGES = ("rouge1", "rouge2", "rougeL")
ARTICLES = {"en": r"\b(a|an|the)\b", "ar": r"(?:^|\s)ال"}  # of the languages where MLQA drops them
BOOTSTRAPS = 1000
CONFIDENCE = 1.96  # standard errors that 95% lie within

# Unicode names of letters that are written without spaces begin so.
UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ")


@dataclass(frozen=True)
class Corpus:
    """A score of all answers together, 0 to 100. error: its standard error, by bootstrap over the
    answers. signature: how it was taken, as sacrebleu prints it."""

    score: float
    error: float
    signature: str


def f1_squad(answer: str, golds: Sequence[str]) -> float:
    """F1 of the words in the answer and in the gold answer that is nearest.

    As SQuAD v1.1 and XTREME have it (Rajpurkar et al. 2016): small letters, no ASCII punctuation,
    no English articles, words parted by white space.
    """
    return _f1(answer, golds, _squad_words)


def f1_unicode(answer: str, golds: Sequence[str], language: str) -> float:
    """As `f1_squad` with the rules of MLQA (Lewis et al. 2020) and lm-eval's TyDiQA.

    All punctuation of Unicode goes, and articles go in English and Arabic only.
    """
    return _f1(answer, golds, lambda text: _unicode_words(text, language))


def exact_squad(answer: str, golds: Sequence[str]) -> float:
    """1 where the answer has the words of a gold answer, in their order, as `f1_squad`."""
    return float(any(_squad_words(answer) == _squad_words(gold) for gold in golds))


def exact_unicode(answer: str, golds: Sequence[str], language: str) -> float:
    """1 where the answer has the words of a gold answer, in their order, as `f1_unicode`."""
    wanted = [_unicode_words(gold, language) for gold in golds]
    return float(_unicode_words(answer, language) in wanted)


def rouge(answer: str, golds: Sequence[str]) -> dict[str, float]:
    """F of each of ROUGES (Lin 2004), by rouge-score on the words of `words`; the best gold's."""
    found = _scorer().score_multi(list(golds), answer)
    return {name: float(found[name].fmeasure) for name in ROUGES}


def bleu(answers: Sequence[str], golds: Sequence[str], language: str) -> Corpus:
    """sacreBLEU of answers in a language, each with one gold; see BLEU_TOKENIZERS."""
    tokenizer = BLEU_TOKENIZERS.get(language, "13a")
    return _corpus("BLEU", answers, golds, tokenize=tokenizer)


def chrf(answers: Sequence[str], golds: Sequence[str]) -> Corpus:
    """chrF++, which is chrF with word bigrams (Popović 2017), by sacrebleu."""
    return _corpus("CHRF", answers, golds, word_order=2)


def words(text: str) -> list[str]:
    """What ROUGE counts: words in small letters, and each letter of a script without spaces.

    A mark belongs to the letter before it; what is no letter, mark or number parts words.
    """
    parts = "".join(map(_parted, unicodedata.normalize("NFC", text).lower()))
    return parts.split()


@cache
def _parted(character: str) -> str:
    """The character, with a space before it where a word begins with it in any case."""
    kind = unicodedata.category(character)[0]
    if kind not in "LMN":
        return " "
    unspaced = kind != "M" and unicodedata.name(character, "").startswith(UNSPACED)
    return f" {character}" if unspaced else character


def _f1(answer: str, golds: Sequence[str], cut: Callable[[str], list[str]]) -> float:
    given = cut(answer)

    def one(gold: str) -> float:
        wanted = cut(gold)
        same = sum((Counter(given) & Counter(wanted)).values())
        if not same:
            return 0.0
        precision, recall = same / len(given), same / len(wanted)
        return 2 * precision * recall / (precision + recall)

    return max(map(one, golds))


def _squad_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _unicode_words(text: str, language: str) -> list[str]:
    kept = "".join(
        c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P"
    )
    if language in ARTICLES:
        kept = re.sub(ARTICLES[language], " ", kept)
    return kept.split()


class _Words:
    """`words` as rouge-score wants a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _scorer() -> Any:
    return _module("rouge_score.rouge_scorer", "rouge-score", "ROUGE").RougeScorer(
        list(ROUGES), tokenizer=_Words()
    )


def _corpus(name: str, answers: Sequence[str], golds: Sequence[str], **settings: Any) -> Corpus:
    metrics = _module("sacrebleu.metrics", "sacrebleu", "BLEU and chrF++")
    tokenizer = settings.get("tokenize", "")
    try:
        metric = getattr(metrics, name)(**settings)
    except (ImportError, RuntimeError):
        raise UserError(
            f'BLEU of {tokenizer[:2]} needs "sacrebleu[{tokenizer[:2]}]"; pip install '
            '"polylm_jax[eval]" and run it again.'
        ) from None
    given = list(answers), [list(golds)]
    score = metric.corpus_score(*given)
    signature = f"{score.name}|{metric.get_signature().format(short=False)}"
    # sacrebleu's own way to the spread fails where a draw has nothing in common with its golds
    significance = _module("sacrebleu.significance", "sacrebleu", "BLEU and chrF++")
    counts = metric._extract_corpus_statistics(*given)
    _, drawn = significance._bootstrap_resample(counts, metric, BOOTSTRAPS)
    _, half = significance.estimate_ci(np.array([one.score for one in drawn], float))
    return Corpus(score.score, float(half) / CONFIDENCE, signature)


def _module(name: str, package: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f'{what} needs {package}; pip install "polylm_jax[eval]" and run it again.'
        ) from None
