"""What cleaning would take, by arithmetic from measured rates, before anything is spent."""

from collections.abc import Iterator

from polylm_jax.console import format_duration
from polylm_jax.data.clean.jobs import Job

# MB a second that one core of a server does: of text, and of HTML before
RATES = {
    "text out of HTML": 16.0,
    "read, mend, mask, write": 12.0,
    "language": 7.0,
    "rules": 7.0,
    "perplexity": 3.1,
    "keys of duplicates": 40.0,
    "clusters": 50.0,
}
GROWTH = {".gz": 3.5, ".zst": 4.0, ".parquet": 2.5}  # what is in a byte of a file
_TEXT = 1 / 15  # text in a byte of HTML: 5 of 75 TB
_DOCUMENT = 3000  # bytes, on average
_CORE_HOUR = 0.056 + 4 * 0.0036  # USD of Dataflow for a core with 4 GB
_SHUFFLED = 0.011  # USD a GB
_OVERHEAD = 2  # of an engine on many machines over a plain loop
_HOURS = 4  # a run that is meant to be over in half a day of work
_MEMORY = 1.0  # GB a worker


def told(job: Job) -> Iterator[str]:
    """The estimate, a line each."""
    html = text = unsaid = 0.0
    for piece in job.pieces:
        for file in piece.shard.files:
            name = file.name.lower()
            size = file.bytes * next((by for end, by in GROWTH.items() if name.endswith(end)), 1.0)
            if piece.shard.kind == "warc" and ".wet" not in name:
                html, size = html + size, size * _TEXT
            text += size
            unsaid += 0 if file.language else size
    amounts = dict.fromkeys(RATES, text) | {"text out of HTML": html, "language": unsaid}
    amounts["perplexity"] *= bool(job.clean.fluent)
    seconds = {name: size / 1e6 / RATES[name] for name, size in amounts.items() if size}
    total = sum(seconds.values())
    documents = text / _DOCUMENT
    shuffled = documents * (1 + job.clean.bands) * 16 / 1e9
    yield (
        f"{len(job.pieces):,} shards, about {text / 1e9:,.3g} GB of text in "
        f"{documents:,.0f} documents"
    )
    for name, some in seconds.items():
        yield f"  {name:26}{some / 3600:12,.2f} core-hours, at {RATES[name]:g} MB/s a core"
    yield f"  {'in all':26}{total / 3600:12,.2f} core-hours"
    here = total / job.beam.workers
    yield f"here, {job.beam.workers} processes: {format_duration(here)}, {_MEMORY:g} GB each"
    workers = min(max(1, round(_OVERHEAD * total / 3600 / _HOURS)), len(job.pieces))
    hours = _OVERHEAD * total / 3600 / workers
    cost = _OVERHEAD * total / 3600 * _CORE_HOUR + shuffled * _SHUFFLED
    yield (
        f"on Dataflow, with twice the time for its own work: {workers:,} cores, "
        f"{format_duration(3600 * hours)}, {shuffled:,.2f} GB shuffled, about {cost:,.2f} USD"
    )
