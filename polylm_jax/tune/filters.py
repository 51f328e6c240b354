"""What a written task must be to be kept: rules in the paper's order, each with its reason.

The paper (§4): the format, web links, then ROUGE-L against the pool, then the input. The rules on
length and keywords are self-instruct's, in each language's own words; that on the language is ours.
The release's Spanish file passes the rule on similarity whole: no pair of its 9,958 instructions
reaches 0.7 in words with their case.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from polylm_jax.ranges import Range, Share, check
from polylm_jax.tune.lexicon import LEXICON, NO_INPUT, NOTHING, STUCK, Lexicon, lexicon_of
from polylm_jax.tune.parse import Block, Task, says
from polylm_jax.tune.rouge import Texts, f
from polylm_jax.tune.words import WORDPUNCT, Words, base, count, words_of

Many = Annotated[int, Range(0, 10_000)]
OTHER = "other"  # in a table of thresholds: every language that is not named

# In the order in which they are applied; the first that speaks rejects.
REASONS = (
    "cut",
    "format",
    "empty",
    "link",
    "length",
    "keyword",
    "language",
    "similar",
    "input",
)

LINK = re.compile(r"\b(?:https?|ftp)://|\bwww\.\w", re.IGNORECASE)
MARKUP = re.compile(r"<\s*no[\s_]*input\s*>", re.IGNORECASE)
# what is quoted may be in any language: "Translate “…” into French"
QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|„[^“”]*[“”]|「[^」]*」|『[^』]*』|`[^`]*`")
# Share of a text's words that are a language's commonest, from which on it may be that language.
# With this, 5 of the release's 9,958 Spanish instructions are not Spanish: those in English.
SURE = 0.15
KANA, HAN = re.compile(r"[\u3040-\u30ff]"), re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class TaskFilters:
    """Thresholds by language, where "other" stands for all that are not named. A table that names
    some languages changes only theirs.

    similarity: a task whose instruction has a ROUGE-L F of this or more with one that is kept, or
        with a seed, is dropped; the paper's (§4).
    input_overlap: so is one whose input has a higher F than this with its instruction; the
        paper's, for languages that it does not name 0.5.
    least_words, most_words: of an instruction. Self-instruct takes 4 to 150, cut at spaces; the
        release keeps instructions of 3.
    script_share: least share of an instruction's letters, less what is quoted, that are of its
        language's script.
    sure_words: words that an instruction in Latin letters must have before its language is judged
        by its commonest words.
    keywords: instead of a language's list in polylm_jax/tune/lexicon.py; () for none.
    """

    similarity: dict[str, Share] = field(default_factory=lambda: {OTHER: 0.7})
    input_overlap: dict[str, Share] = field(
        default_factory=lambda: {OTHER: 0.5, "ko": 0.3, "vi": 0.3, "ar": 0.2}
    )
    least_words: dict[str, Many] = field(default_factory=lambda: {OTHER: 3})
    most_words: dict[str, Many] = field(default_factory=lambda: {OTHER: 150})
    script_share: dict[str, Share] = field(default_factory=lambda: {OTHER: 0.2})
    sure_words: Annotated[int, Range(1, 10_000, also=(0, "never"))] = 8
    keywords: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "task_filters")


@dataclass(frozen=True)
class Rules:
    """The filters of one language."""

    words: Words
    lexicon: Lexicon
    keywords: re.Pattern[str] | None
    language: str
    similarity: float
    input_overlap: float
    least_words: int
    most_words: int
    script_share: float
    sure_words: int


@dataclass(frozen=True)
class Verdict:
    """A block judged. task: kept where there is no reason. reason: of REASONS, or empty. because:
    what the reason saw, for a person. repaired: its input lay in its instruction and was dropped.
    """

    block: Block
    task: Task | None = None
    reason: str = ""
    because: str = ""
    repaired: bool = False


def rules_of(filters: TaskFilters, language: str) -> Rules:
    """A language's rules. UserError where its words cannot be told, see `words_of`."""
    code = base(language)

    def of(name: str) -> Any:
        tables = (getattr(filters, name), getattr(TaskFilters(), name))
        names = (language, code, OTHER)
        found = [table[key] for key in names for table in tables if key in table]
        return found[0]

    lexicon = lexicon_of(language)
    return Rules(
        words_of(language),
        lexicon,
        _keywords(filters.keywords.get(language, lexicon.keywords), code),
        code,
        of("similarity"),
        of("input_overlap"),
        of("least_words"),
        of("most_words"),
        of("script_share"),
        filters.sure_words,
    )


def judge(blocks: Sequence[Block], pool: Texts, texts: list[str], rules: Rules) -> list[Verdict]:
    """A verdict for each block of one reply, in order; what is kept joins the pool.

    pool, texts: instructions of the seeds and of all tasks kept before, encoded and as they are.
    """
    alone = [_alone(block, rules) for block in blocks]
    fair = [verdict.task.instruction for verdict in alone if verdict.task]
    before = len(pool)
    similar = iter(pool.f(fair))
    verdicts = []
    for verdict in alone:
        if verdict.task:
            verdict = _beside(verdict, verdict.task, next(similar), pool, texts, before, rules)
        if verdict.task:
            pool.add([verdict.task.instruction])
            texts.append(verdict.task.instruction)
        verdicts.append(verdict)
    return verdicts


def _beside(
    verdict: Verdict,
    task: Task,
    similar: np.ndarray,
    pool: Texts,
    texts: list[str],
    before: int,
    rules: Rules,
) -> Verdict:
    """The verdict once the task is seen beside the others, and its input beside its instruction."""
    similar = np.append(similar, pool.f([task.instruction], before))
    if len(similar) and similar.max() >= rules.similarity:
        near = int(similar.argmax())
        return Verdict(verdict.block, None, "similar", f"{similar[near]:.3f}: {texts[near]}")
    if task.input is None:
        return verdict
    if task.input in task.instruction:
        return Verdict(verdict.block, Task(task.instruction, None, task.output), repaired=True)
    overlap = f(task.instruction, task.input, rules.words)
    if overlap > rules.input_overlap:
        return Verdict(verdict.block, None, "input", f"{overlap:.3f}")
    return verdict


def _alone(block: Block, rules: Rules) -> Verdict:
    for reason, rule in ALONE.items():
        because = rule(block, rules)
        if because is not None:
            return Verdict(block, None, reason, because)
    given = None if block.input is None or says(block.input, NO_INPUT) else block.input
    return Verdict(block, Task(block.instruction or "", given, block.output or ""))


def _cut(block: Block, rules: Rules) -> str | None:
    return "the reply ended in it" if block.cut else None


def _format(block: Block, rules: Rules) -> str | None:
    for name in ("instruction", "output"):
        if getattr(block, name) is None:
            return f"no {name}"
    whole = "\n".join(filter(None, (block.instruction, block.output)))
    left = MARKUP.search(whole)
    return f"{left[0]} in it" if left else None


def _empty(block: Block, rules: Rules) -> str | None:
    for name in ("instruction", "output"):
        text = getattr(block, name)
        if says(text, NOTHING):
            return f"{name}: {text!r}"
    return None


def _link(block: Block, rules: Rules) -> str | None:
    found = LINK.search("\n".join(filter(None, (block.instruction, block.input, block.output))))
    return found and found[0]


def _length(block: Block, rules: Rules) -> str | None:
    words = count(rules.words(block.instruction or ""))
    return None if rules.least_words <= words <= rules.most_words else f"{words} words"


def _keyword(block: Block, rules: Rules) -> str | None:
    text = unicodedata.normalize("NFC", block.instruction or "")
    found = rules.keywords and rules.keywords.search(text)
    return found[0] if found else None


def _language(block: Block, rules: Rules) -> str | None:
    return other_language(QUOTED.sub(" ", block.instruction or ""), rules)


ALONE: dict[str, Callable[[Block, Rules], str | None]] = {
    "cut": _cut,
    "format": _format,
    "empty": _empty,
    "link": _link,
    "length": _length,
    "keyword": _keyword,
    "language": _language,
}


def other_language(text: str, rules: Rules) -> str | None:
    """What a text that is surely not in the rules' language looks like, or None.

    By script, where the language has one of its own or the text's is not its; in Latin letters
    only a long text is judged, by the words that each language uses most.
    """
    text = unicodedata.normalize("NFC", text)
    letters = [letter for letter in text if letter.isalpha()]
    if not letters or rules.language not in LEXICON:
        return None
    own = rules.lexicon.letters or r"A-Za-z\u00c0-\u024f\u1e00-\u1eff"
    share = len(re.findall(f"[{own}]", "".join(letters))) / len(letters)
    if share < rules.script_share:
        return f"{share:.0%} of its letters are of the script"
    kana, han = len(KANA.findall(text)), len(HAN.findall(text))
    if rules.language == "zh" and kana > 0.1 * len(letters):
        return "kana"
    if rules.language == "ja" and not kana and han >= rules.sure_words > 0:
        return "no kana"
    if rules.lexicon.letters or not rules.sure_words:
        return None
    words = [word.casefold() for word in WORDPUNCT.findall(text) if word[0].isalpha()]
    if len(words) < rules.sure_words:
        return None
    own_common = rules.lexicon.common
    shares = {
        language: sum(word in lexicon.common for word in words) / len(words)
        for language, lexicon in LEXICON.items()
        if len((lexicon.common - own_common) & set(words)) >= 3 or language == rules.language
    }
    best = max(shares, key=lambda language: shares[language])
    sure = shares[best] >= SURE and shares[best] >= 3 * shares[rules.language]
    return best if sure else None


@functools.cache
def _keywords(words: tuple[str, ...], language: str) -> re.Pattern[str] | None:
    if not words:
        return None
    any_of = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    border = "" if language in STUCK else r"\b"
    return re.compile(f"{border}(?:{any_of}){border}", re.IGNORECASE)
