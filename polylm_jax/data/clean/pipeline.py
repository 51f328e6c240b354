"""The four passes of `polylm clean`, one after another: measure, thresholds, duplicates, write.

Each looks at what is there and makes the rest, so that a run which ended anywhere goes on where it
was. All that is made is a function of the inputs and settings alone: not of the runner, of the
number of workers, or of the order in which shards are done.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from polylm_jax.console import LiveLine, format_duration
from polylm_jax.data.clean import (
    clusters,
    contamination,
    fluency,
    measuring,
    pairing,
    products,
    report,
    rules,
    thresholds,
    verdicts,
)
from polylm_jax.data.clean import deciding as decisions
from polylm_jax.data.clean.deciding import Deciding
from polylm_jax.data.clean.engine import each, grouped, looped
from polylm_jax.data.clean.jobs import Job, check_limits, name_of, planned
from polylm_jax.data.clean.language import never_told
from polylm_jax.data.clean.products import WORK, Piece, digest
from polylm_jax.data.clean.thresholds import Limits, Thresholds
from polylm_jax.data.languages import in_order, is_bilingual, is_language
from polylm_jax.data.shards import write_manifest
from polylm_jax.data.sides import Hashes
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST, opened, put

GIN = "thresholds.gin"
_SHARD_FILE = re.compile(r"(train|valid)-\d+-of-\d+\.jsonl.*")  # or what a kill left of one
_PART = 2**26 // 50  # clusters of which one worker finds the best copies
_FEW = 2**18  # documents that are decided on here, in a second; their text takes half a minute
# of a document's letters, in lines of its language: what HPLT v2 keeps (arXiv 2503.10267)
_SHARE = {"language_share": (0.2, None)}
_LOOK = 1.0  # seconds between two looks at what is made


@contextmanager
def _watched(stage: str, folder: str, ending: str, wanted: int) -> Iterator[None]:
    """Shows how many of a stage's products are there while the block runs."""
    line, stop, begun = LiveLine(10), threading.Event(), time.monotonic()
    before = _done(folder, ending)

    def look() -> None:
        while not stop.wait(_LOOK):
            done = _done(folder, ending)
            left = (wanted - done) * (time.monotonic() - begun) / max(done - before, 1)
            soon = f", {format_duration(left)} left" if done > before else ""
            line.show(f"clean {stage}: {done:,} of {wanted:,} shards{soon}")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        line.close()


def measure(job: Job) -> list[dict]:
    """The first pass; returns the notes of all shards."""
    if job.index and not products.exists(f"{job.index}.json"):
        index = contamination.index(contamination.read(job.clean.evaluation))
        measuring.save_index(job.index, index)
    if job.models:
        _folder(job.models)
        fluency.train(job.clean, job.beam, job.tokenizer, job.models)
    there = set(products.names(job.measured))
    todo = [piece for piece in job.pieces if f"{piece.key}.json" not in there]
    if todo:
        _check_languages(job)
        _folder(job.measured)
        with _watched("measure", job.measured, ".json", len(job.pieces)):
            settings = measuring.Measuring(
                job.clean, job.language, job.measured, job.models, job.tokenizer, job.index
            )
            work = partial(measuring.measure, settings)
            each(job.beam, work, todo)
    return [products.load_json(f"{job.measured}/{piece.key}.json") for piece in job.pieces]


def _check_languages(job: Job) -> None:
    """UserError where a language is to be kept that no document will be found to be in."""
    said = {file.language for piece in job.pieces for file in piece.shard.files}
    wanted = job.clean.languages if "" in said else ()
    unsaid = [code for code in wanted if is_language(code) and code not in said]
    for code, others in never_told(unsaid, job.language).items() if unsaid else ():
        if not {*others} & {*wanted}:
            instead = f"write {' or '.join(others)}" if others else "take it out"
            raise UserError(
                f'clean.languages has "{code}", which no text is found to be in; {instead}, or say '
                "with clean.inputs where there is such text."
            )


def unsought(job: Job) -> tuple[int, int]:
    """Items of benchmarks that are too short to be looked for, and all."""
    if not job.index:
        return 0, 0
    index = measuring.opened_index(job.index)
    return index.short, len(index.names)


def _folder(path: str) -> None:
    files, root = opened(path)
    files.makedirs(root, exist_ok=True)


def histograms(job: Job, notes: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """The histograms of all shards together, by language and feature."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for piece, note in zip(job.pieces, notes, strict=True):
        path = f"{job.measured}/{piece.key}.histograms.npy"
        measuring.add_histograms(found, path, note["languages"])
    return {language: found[language] for language in in_order(found)}


def derive(job: Job, settings: Thresholds, notes: list[dict]) -> str:
    """The second pass; returns the place of the gin file, which its user may have edited.

    UserError where it was edited and is of other scores than there are now.
    """
    check_limits(settings.limits)
    other = _reference(job, settings)
    copy = _derived(job, settings, other)
    if not products.exists(copy):
        found = histograms(job, notes)
        pairs = {name: found.pop(name) for name in [*found] if is_bilingual(name)}
        clean = measure(other) if other else []
        derived = thresholds.derive(
            found,
            _scripts([*notes, *clean]),
            {feature.name: feature.limit for feature in rules.FEATURES} | _SHARE,
            fluency.KEPT,
            settings,
            histograms(other, clean) if other else None,
        )
        derived |= thresholds.of_pairs(pairs, pairing.RULES, settings)
        put(copy, thresholds.as_gin(derived).encode())
    place, new = f"{job.clean.output}/{GIN}", products.read(copy)
    there = products.read(place) if products.exists(place) else b""
    if thresholds.origin(there) != thresholds.origin(new):
        if there and thresholds.is_edited(there):
            raise UserError(
                f"{place} was edited and is of other text or settings; move it away, and give it "
                "back with --gin_file if it is still wanted."
            )
        put(place, new)
    return place


def _derived(job: Job, settings: Thresholds, other: Job | None) -> str:
    """Where the thresholds are kept as they were derived, with those of `other` as reference."""
    made_from = (name_of(job.measured), job.inputs, asdict(settings), other and other.inputs)
    return f"{job.folder('thresholds', *made_from)}.gin"


def _reference(job: Job, settings: Thresholds) -> Job | None:
    """What measures the clean text that thresholds.reference names."""
    if not settings.reference:
        return None
    clean = replace(job.clean, inputs={settings.reference: ""})
    return planned(clean, job.language, job.tokenizer, job.beam)


def _scripts(notes: list[dict]) -> dict[str, str]:
    """The script that most documents of each language are in."""
    counts: dict[str, dict[str, int]] = {}
    for note in notes:
        for language, scripts in note["scripts"].items():
            of = counts.setdefault(language, {})
            for script, count in scripts.items():
                of[script] = of.get(script, 0) + count
    return {language: max(sorted(of), key=of.__getitem__) for language, of in counts.items()}


def duplicates(job: Job, notes: list[dict]) -> None:
    """The third pass."""
    if products.exists(f"{job.clusters}/{clusters.DONE}"):
        return
    _folder(job.clusters)
    keys = [
        clusters.Keys(piece.number, f"{job.measured}/{piece.key}.keys.npy") for piece in job.pieces
    ]
    count = sum(note["documents"] for note in notes) * (1 + job.clean.bands)
    clusters.find(job.beam, keys, count, job.clean.shuffle_megabytes * 1e6, job.clusters)


def write(job: Job, notes: list[dict], limits: Limits) -> list[dict]:
    """The fourth pass; returns what the notes of all shards say, as one note for `report`."""
    check_limits(limits)
    settings, made_from = _decided_by(job, limits)
    count = sum(note["documents"] for note in notes)
    deciding = Deciding(
        job.clean,
        limits,
        job.measured,
        job.clusters,
        job.folder("decided", settings),
        job.index,
        _stock(job, notes),
        max(1, count // _PART),
    )
    edges, tasks = _decided(job, deciding, count)
    there = _stand_aside(job, made_from, {name_of(task.note) for task in tasks})
    todo = [task for task in tasks if name_of(task.note) not in there]
    if todo:
        with _watched("write", _written(job), ".json", len(tasks)):
            each(job.beam, partial(verdicts.write, deciding, job.clean.output), todo)
    # what each shard says is added up at once: 10,000 notes with their samples are some gigabytes
    together, entries, documents = report.NOTHING, dict[str, list](), 0
    for task in tasks:
        note = products.load_json(task.note)
        documents += _checked(note)
        for language, some in note["entries"].items():
            entries.setdefault(language, []).append(some)
        together = report.together(together, note)
    read = sum(note["documents"] for note in notes)
    if documents != read:
        raise AssertionError(f"{read:,} documents were read, and {documents:,} have a verdict")
    _finish(job, limits, {language: entries[language] for language in edges})
    return [together]


def _decided_by(job: Job, limits: Limits) -> tuple[str, str]:
    """The hash of all that decides on documents, and of all that decides what is written."""
    settings = decisions.settings_of(job.clean, limits, name_of(job.clusters), name_of(job.index))
    more = (job.clean.mask, job.clean.valid_share, job.clean.valid_megabytes)
    return settings, digest(settings, *more)


def _written(job: Job) -> str:
    """The folder of the notes of what is written."""
    return f"{job.clean.output}/{WORK}/written"


def _task(
    job: Job, settings: str, piece: Piece, note: dict, shares: dict[str, verdicts.Share]
) -> verdicts.Task:
    """What a shard is to write; where a note by the name of all that decides on it is, it has.

    settings: the hash of all that decides on documents but limits, which count by what they decide.
    """
    shared = {language: asdict(share) for language, share in shares.items()}
    key = digest(settings, job.clean.mask, piece.key, note["decided"], shared)
    return verdicts.Task(piece, shares, f"{_written(job)}/{piece.number:08}-{key}.json")


def _stock(job: Job, notes: list[dict]) -> str:
    """How many documents have each window of the benchmarks, a cluster being one; in a file."""
    if not job.index:
        return ""
    path = job.folder("stock", name_of(job.clusters), name_of(job.index)) + ".npy"
    if not products.exists(path):
        total = np.zeros(len(measuring.opened_index(job.index).hashes), np.int64)
        for piece, note in zip(job.pieces, notes, strict=True):
            hits = products.load(f"{job.measured}/{piece.key}.hits.npy")
            cluster, _ = clusters.of(job.clusters, piece.number, note["documents"])
            own = (piece.number << clusters.PLACE) + 1 + hits[:, 0]
            first = (cluster[hits[:, 0]] == 0) | (cluster[hits[:, 0]].astype(np.int64) == own)
            total += np.bincount(hits[first, 1], minlength=len(total))
        products.save(path, total)
    return path


def _decided(
    job: Job, deciding: Deciding, documents: int
) -> tuple[dict[str, int], list[verdicts.Task]]:
    """Decides on all documents; returns below which hash a language's are held out, and what
    each shard is to write."""
    if not products.exists(f"{deciding.folder}/done"):
        _folder(deciding.folder)
        share = looped if documents <= _FEW else partial(grouped, job.beam)
        share(partial(decisions.decide, deciding), job.pieces, partial(decisions.tell, deciding))
        best = [n for n in products.names(deciding.folder) if n.startswith("best-")]
        told = [*(f"{deciding.folder}/{name}" for name in best), *range(len(job.pieces))]
        keys = {piece.number: piece.key for piece in job.pieces}
        share(decisions.told, told, partial(decisions.settle, deciding, keys))
        put(f"{deciding.folder}/done", b"")
    notes = [products.load_json(f"{deciding.folder}/{p.number:08}.json") for p in job.pieces]
    found, survivors = (sum(note[name] for note in notes) for name in ("clusters", "survivors"))
    if found != survivors:
        raise AssertionError(f"{found} clusters of duplicates have {survivors} survivors")
    return _shared(job, deciding, notes)


def _shared(
    job: Job, deciding: Deciding, notes: list[dict]
) -> tuple[dict[str, int], list[verdicts.Task]]:
    """Who writes which file of which language, and the hashes below which it is held out."""
    seen: dict[str, Hashes] = {}
    with_some: dict[str, list[int]] = {}
    for piece, note in zip(job.pieces, notes, strict=True):
        # each file once, for there are as many languages as shards have of them
        rows = products.load(f"{deciding.folder}/{piece.number:08}.held.npy")
        for number, language in enumerate(note["languages"]):
            if note["kept"][number]:
                seen.setdefault(language, Hashes()).add(rows[rows["language"] == number])
                with_some.setdefault(language, []).append(piece.number)
    wanted = (job.clean.valid_share, job.clean.valid_megabytes * 1e6)
    edges = {language: seen[language].threshold(*wanted) for language in in_order(seen)}
    shares: list[dict[str, verdicts.Share]] = [{} for _ in job.pieces]
    for language, edge in edges.items():
        for place, number in enumerate(with_some[language]):
            shares[number][language] = verdicts.Share(place, len(with_some[language]), edge)
    settings, _ = _decided_by(job, {})
    each_shard = zip(job.pieces, notes, shares, strict=True)
    return edges, [_task(job, settings, *one) for one in each_shard]


def _checked(note: dict) -> int:
    """The documents of a written shard, once all of them were kept or dropped, and once."""
    for language, counts in note["counts"].items():
        became = counts["kept"][0] + sum(count for count, _ in counts["first"].values())
        if became != counts["read"][0]:
            raise AssertionError(f"{language}: documents are lost or counted twice: {counts}")
        entry = note["entries"].get(language, {})
        if sum(split["documents"] for split in entry.values()) != counts["kept"][0]:
            raise AssertionError(f"{language}: {counts['kept'][0]} are kept, but not written")
    return sum(counts["read"][0] for counts in note["counts"].values())


def _stand_aside(job: Job, made_from: str, wanted: set[str]) -> set[str]:
    """Takes an older corpus's manifest away before its files change, and of its notes those that
    are not wanted; returns the names of the others, whose shards have the same to write as then.

    No other shard writes into the files of these, which are called by their shares.
    """
    _folder(_written(job))
    there = set(products.names(_written(job)))
    if there != wanted:
        files, root = opened(job.clean.output)
        if products.exists(f"{job.clean.output}/{MANIFEST}"):
            files.rm(f"{root}/{MANIFEST}")
        # what was written there is about to be replaced, so no note may say that it is there
        for name in there - wanted:
            files.rm(f"{root}/{WORK}/written/{name}")
    products.save_json(_writing(job), made_from)
    return there & wanted


def _writing(job: Job) -> str:
    """Where it stands what is being written, for `status`."""
    return f"{job.clean.output}/{WORK}/writing.json"


def _finish(job: Job, limits: Limits, entries: dict[str, list]) -> None:
    """Removes files of an older corpus and writes the manifest. entries: as `write_manifest`."""
    output = job.clean.output
    wanted = {
        f"{language}/{split['file']}"
        for language, some in entries.items()
        for one in some
        for split in one.values()
    }
    own = {verdicts.name_of(piece.number) for piece in job.pieces}
    files, root = opened(output)
    for path in files.find(root):
        name = path.removeprefix(f"{root}/")
        shard, verdict = _SHARD_FILE.fullmatch(name.rpartition("/")[2]), name.split("/")
        stale = verdict[0] == verdicts.FOLDER and verdict[-1] not in own
        if (shard and name not in wanted and verdict[0] != WORK) or stale:
            files.rm(path)
    write_manifest(
        output,
        entries,
        valid_share=job.clean.valid_share,
        valid_megabytes=job.clean.valid_megabytes,
        thresholds=digest(limits),
    )


def status(job: Job, settings: Thresholds, limits: Limits) -> list[tuple[str, int, int]]:
    """Of each pass its name, how many shards it has done, and of how many.

    limits: of the thresholds' file, if it is there. Work of other settings does not count.
    """
    count, keys = len(job.pieces), set(job.inputs)
    there = products.names(job.measured)
    derived = products.exists(_derived(job, settings, _reference(job, settings)))
    whole = products.exists(f"{job.clusters}/{clusters.DONE}")
    decided, written = _decided_by(job, limits)
    begun = (
        derived and products.exists(_writing(job)) and products.load_json(_writing(job)) == written
    )
    return [
        ("measure", sum(name.removesuffix(".json") in keys for name in there), count),
        ("thresholds", count * derived, count),
        ("duplicates", count * whole, count),
        ("decide", derived * _done(job.folder("decided", decided), ".settled.npy"), count),
        ("write", begun * _done(_written(job), ".json"), count),
    ]


def _done(folder: str, ending: str) -> int:
    return sum(name.endswith(ending) for name in products.names(folder))
