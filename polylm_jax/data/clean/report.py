"""What cleaning has done: counts by language and rule, figures, samples, a document's story."""

import json
from collections.abc import Iterator
from math import isnan
from typing import Any

from polylm_jax.data.clean import figures, products, rules, thresholds
from polylm_jax.data.clean.deciding import CONTAMINATED, DUPLICATE, LANGUAGE, ORDERS
from polylm_jax.data.clean.fluency import SCORES
from polylm_jax.data.clean.pairing import MISALIGNED, RULES
from polylm_jax.data.clean.thresholds import OF_LANGUAGE, Limits
from polylm_jax.data.clean.verdicts import FOLDER, SAMPLES
from polylm_jax.data.languages import in_order, name_of
from polylm_jax.errors import UserError
from polylm_jax.files import put

# what PolyLM's own cleaning dropped, in percent (arXiv 2307.06018, 3.1)
PAPER = {"rules and quality": 28.3, "duplicates, English": 23.1, "duplicates, others": 18.6}

KINDS = ("kept", DUPLICATE, LANGUAGE, CONTAMINATED, "rules")
Counts = dict[str, dict[str, Any]]


# the note of no shard
NOTHING: dict[str, Any] = {"counts": {}, "pairs": {}, "samples": {}}


def together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two notes of written shards as one, which says of them what they say, and is no larger."""
    both = [one, other]
    return {"counts": counted(both), "pairs": of_pairs(both), "samples": _samples(both)}


def counted(notes: list[dict]) -> Counts:
    """The counts of all shards together, by language: [documents, bytes] that were read and kept,
    and that have each first reason; documents that have any reason."""
    found: Counts = {}
    for note in notes:
        for language, counts in note["counts"].items():
            of = found.setdefault(
                language, {"read": [0, 0], "kept": [0, 0], "first": {}, "any": {}}
            )
            for side in ("read", "kept"):
                of[side] = _sum(of[side], counts[side])
            for reason, some in counts["first"].items():
                of["first"][reason] = _sum(of["first"].get(reason, [0, 0]), some)
            for reason, number in counts["any"].items():
                of["any"][reason] = of["any"].get(reason, 0) + number
    return {language: found[language] for language in in_order(found)}


def of_pairs(notes: list[dict]) -> dict[str, dict[str, int]]:
    """Pairs of the kept documents by language: how many, and those left out, in all and by rule."""
    found: dict[str, dict[str, int]] = {}
    for note in notes:
        for language, counts in note.get("pairs", {}).items():
            of = found.setdefault(language, dict.fromkeys(counts, 0))
            found[language] = {name: of[name] + count for name, count in counts.items()}
    return {language: found[language] for language in in_order(found)}


def _sum(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def by_kind(counts: dict[str, Any]) -> dict[str, int]:
    """Documents of one language that were kept, and those dropped, by the kind of reason."""
    found = dict.fromkeys(KINDS, 0) | {"kept": counts["kept"][0]}
    for reason, (number, _) in counts["first"].items():
        found[reason if reason in KINDS else "rules"] += number
    return found


def beside_paper(counts: Counts) -> dict[str, float]:
    """Percent of documents that were dropped as PAPER has it; NaN where there were none.

    Each is of what was there before it: what comes first in the order has more to drop.
    """
    kinds = {language: by_kind(some) for language, some in counts.items()}

    def share(part: str, languages: list[str]) -> float:
        dropped = sum(kinds[one][part] for one in languages)
        there = sum(sum(kinds[one].values()) - kinds[one][LANGUAGE] for one in languages)
        return 100 * dropped / there if there else float("nan")

    english: list[str] = []
    others: list[str] = []
    for language in kinds:
        (english if language == "en" else others).append(language)
    shares = (share("rules", [*kinds]), share(DUPLICATE, english), share(DUPLICATE, others))
    return dict(zip(PAPER, shares, strict=True))


def marked(counts: Counts, limits: Limits) -> Iterator[str]:
    """What looks wrong: rules that drop nothing anywhere, or over half of a language."""
    ruled = {language: own for language in counts if (own := thresholds.of(limits, language))}
    for name in sorted({rule for own in ruled.values() for rule in own} - {*RULES}):
        reason = LANGUAGE if name in OF_LANGUAGE else name
        if not any(counts[language]["any"].get(reason) for language in ruled):
            yield f"{name} drops nothing"
    for language, some in counts.items():
        for reason, number in some["any"].items():
            if 2 * number > some["read"][0]:
                yield f"{reason} drops {number / some['read'][0]:.0%} of {name_of(language)}"
    if not any(some["any"].get(DUPLICATE) for some in counts.values()):
        total = sum(some["read"][0] for some in counts.values())
        yield f"not one of {total:,} documents is a duplicate"


def samples(notes: list[dict]) -> Iterator[dict[str, str]]:
    """Dropped documents, SAMPLES of each language and first reason, those of the lowest ids."""
    for of, some in sorted(_samples(notes).items()):
        language, reason = of.split(" ")
        for identity, text in some:
            yield {"language": language, "reason": reason, "id": identity, "text": text}


def _samples(notes: list[dict]) -> dict[str, list[list[str]]]:
    """Those of each language and reason: id and text."""
    found: dict[str, list[list[str]]] = {}
    for note in notes:
        for of, some in note["samples"].items():
            found[of] = sorted([*found.get(of, []), *some])[:SAMPLES]
    return found


def write(output: str, notes: list[dict], limits: Limits, histograms: dict) -> str:
    """Writes report.md, its figures and samples.jsonl below `output`; returns report.md's place."""
    counts, folder = counted(notes), f"{output}/report"
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in samples(notes)]
    put(f"{folder}/samples.jsonl", "".join(lines).encode())
    kinds = {name_of(language): by_kind(some) for language, some in counts.items()}
    put(f"{folder}/languages.png", figures.languages(kinds, beside_paper(counts), PAPER))
    put(f"{folder}/histograms.png", figures.histograms(_busiest(counts), limits, histograms))
    lines = [f"{line}\n" for line in _markdown(counts, of_pairs(notes), limits)]
    put(f"{folder}/report.md", "".join(lines).encode())
    return f"{folder}/report.md"


def _busiest(counts: Counts) -> list[str]:
    """Rules, those first that most documents break."""
    total: dict[str, int] = {}
    for some in counts.values():
        for reason, number in some["any"].items():
            total[reason] = total.get(reason, 0) + number
    return sorted(total, key=lambda name: (-total[name], name))


def _markdown(counts: Counts, pairs: dict[str, dict[str, int]], limits: Limits) -> Iterator[str]:
    yield "# What was cleaned\n"
    yield "![by language](languages.png)\n"
    yield "| language | documents | MB | kept | MB | " + " | ".join(KINDS[1:]) + " |"
    yield "|---|" + "---:|" * (4 + len(KINDS[1:]))
    for language, some in counts.items():
        kinds, total = by_kind(some), max(some["read"][0], 1)
        cells = [f"{100 * kinds[kind] / total:.1f}%" for kind in KINDS[1:]]
        (read, size), (kept, left) = some["read"], some["kept"]
        row = [
            name_of(language),
            f"{read:,}",
            f"{size / 1e6:,.2f}",
            f"{kept:,}",
            f"{left / 1e6:,.2f}",
        ]
        yield "| " + " | ".join([*row, *cells]) + " |"
    yield "\n| dropped, % of what was in its language | here | PolyLM |"
    yield "|---|---:|---:|"
    for name, value in beside_paper(counts).items():
        yield f"| {name} | {'none' if isnan(value) else f'{value:.1f}'} | {PAPER[name]} |"
    if pairs:
        yield "\n| pairs in kept documents | there | left out | " + " | ".join(RULES) + " |"
        yield "|---|" + "---:|" * (2 + len(RULES))
        for language, some in pairs.items():
            yield f"| {name_of(language)} | " + " | ".join(f"{n:,}" for n in some.values()) + " |"
    looks = list(marked(counts, limits))
    yield "\n## To look at\n"
    yield from (f"- {line}" for line in looks or ["nothing"])
    yield "\n## Rules\n"
    yield "| rule | first reason | any reason | what |"
    yield "|---|---:|---:|---|"
    what = {feature.name: feature.what for feature in rules.FEATURES}
    for reason in ORDERS["duplicates"]:
        first = sum(some["first"].get(reason, [0])[0] for some in counts.values())
        every = sum(some["any"].get(reason, 0) for some in counts.values())
        if every:
            yield f"| {reason} | {first:,} | {every:,} | {what.get(reason, '')} |"
    yield f"\n![scores, with thresholds](histograms.png)\n\n{SAMPLES} of each: samples.jsonl"


def explain(output: str, identity: str) -> Iterator[str]:
    """All that is known of a document, a line each; UserError where none has this id."""
    from pyarrow import BufferReader, parquet

    folder = f"{output}/{FOLDER}"
    for name in products.names(folder):
        # of each nothing is read but its ids
        file = parquet.ParquetFile(BufferReader(products.mapped(f"{folder}/{name}")))
        ids = file.read(["id"]).column("id").to_pylist()
        if identity in ids:
            return _told(file.read().slice(ids.index(identity), 1).to_pylist()[0])
    raise UserError(
        f'no verdict in {folder} has the id "{identity}"; ids have 16 letters a to f, 0 to 9.'
    )


def _told(row: dict[str, Any]) -> Iterator[str]:
    what = {feature.name: feature.what for feature in rules.FEATURES}
    reasons = row["reasons"].split()
    yield (
        f"{row['id']} is kept." if row["kept"] else f"{row['id']} is dropped: {', '.join(reasons)}."
    )
    yield f"from      {row['file']}@{row['record']} {row['url']}".rstrip()
    sure = f"{row['score']:.2f} sure, {row['language_share']:.0%} of it"
    yield f"language  {row['language']}, {'as its input says' if isnan(row['score']) else sure}"
    if row["cluster"]:
        own = "this one" if row["survivor"] == row["id"] else row["survivor"]
        yield f"cluster   of {row['cluster_size']} copies, of which {own} survives"
    if row["items"]:
        yield f"holds     {row['items']}"
    if row["pairs"]:
        yield f"pairs     {row['pairs']}, of which left out: {row['wrong_pairs'] or 'none'}"
    if row["mended"] or row["masked"]:
        yield f"changed   {row['mended'] or 'nothing'} mended, {row['masked']} addresses masked"
    for name in (*what, *SCORES, MISALIGNED):
        if not isnan(row[name]):
            mark = "*" if name in reasons else " "
            yield f"{mark} {name:31}{row[name]:12,.4g}  {what.get(name, '')}".rstrip()
