"""What `polylm clean` reads, makes and drops."""

from dataclasses import dataclass, field
from typing import Annotated

from polylm_jax.errors import UserError
from polylm_jax.files import MaybePlace, Place
from polylm_jax.ranges import TINY, OneOf, Range, Share, check


@dataclass(frozen=True)
class Clean:
    """Where the text is, where the corpus goes, and what becomes of documents on the way.

    inputs: files, folders or patterns of them, local or at URLs, with the language of what is
        there, "" where that is to be found out: {"data/wiki/de": "de", "gs://b/*.warc.gz": ""}. A
        corpus of ours knows its languages.
    output: folder of the clean corpus, its verdicts and its report.
    languages: codes of those that are kept; () for all.
    key: the text's key in a record of JSONL, and its column in a Parquet file.
    bad: whether a broken record is counted and told ("skip"), or ends the run ("refuse").
    off: rules, by name, that drop nothing.
    order: whether what is a duplicate and breaks a rule counts as a duplicate ("duplicates"), as
        FineWeb2 has it, or as what breaks the rule ("rules"), as the paper has it.
    scraps: bytes of UTF-8 below which a line that ends in no mark of a sentence is left out, as
        entries of menus are, and lines with format strings (%s, {name}, tags) with them; 0 leaves
        all lines.
    longest: characters of the longest document that is kept.
    bands, rows: of the MinHash that finds near duplicates; 14 of 8 find an agreement of 0.8.
    shuffle_megabytes: most of the keys of duplicates that go through Beam at once.
    fluent: corpus of clean text, of which an n-gram model of each language is trained that tells
        how fluent a text is, with the tokenizer of `tokenizer`; "" for none.
    web: corpus of pages as they are, from whose English a classifier tells clean English, as the
        paper's does; "" for none. It takes clean.fluent, too.
    fluent_megabytes: most text of a language that its model is trained on.
    ngrams: pieces of the longest n-gram.
    evaluation: folders of benchmarks whose items no document may hold.
    mask: whether e-mail and public IP addresses are masked.
    valid_share, valid_megabytes: what is held out of each source, as in `corpus`.
    """

    inputs: dict[Place, str] = field(default_factory=dict)
    output: Place = "data/clean"
    languages: tuple[str, ...] = ()
    key: str = "text"
    bad: Annotated[str, OneOf("skip", "refuse")] = "skip"
    off: tuple[str, ...] = ()
    order: Annotated[str, OneOf("duplicates", "rules")] = "duplicates"
    scraps: Annotated[int, Range(0)] = 0
    longest: Annotated[int, Range(1)] = 10_000_000
    bands: Annotated[int, Range(1, 256)] = 14
    rows: Annotated[int, Range(1, 64)] = 8
    shuffle_megabytes: Annotated[float, Range(1, 1e9)] = 256.0
    fluent: MaybePlace = ""
    web: MaybePlace = ""
    fluent_megabytes: Annotated[float, Range(TINY, 1e6)] = 50.0
    ngrams: Annotated[int, Range(2, 8)] = 5
    evaluation: tuple[Place, ...] = ()
    mask: bool = True
    valid_share: Share = 0.1
    valid_megabytes: Annotated[float, Range(0, 1e6)] = 20.0

    def __post_init__(self) -> None:
        check(self, "clean")
        if self.web and not self.fluent:
            raise UserError(
                "clean.web is set without clean.fluent; name clean text to tell web pages from."
            )
