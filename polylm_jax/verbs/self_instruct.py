"""Have a language model write instructions, round after round, from a few seeds, in any languages.

seeds: translates the seeds, for you to read before anything else is paid for. run: writes and
filters tasks; the same command goes on where it was stopped. report: what came of it so far.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from polylm_jax import config
from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import generate
from polylm_jax.files import new_file
from polylm_jax.parallel.hosts import stop_signals
from polylm_jax.tune import pictures, report, rounds
from polylm_jax.tune.journal import Request, locked
from polylm_jax.tune.rounds import Till, Write, cost_text
from polylm_jax.tune.self_instruct import Language, Seeds, SelfInstruct
from polylm_jax.tune.writer import Desk, Endpoint, Stopped, Writer
from polylm_jax.verbs.model_of import for_decoding, model_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("part", choices=PARTS, help="seeds, then run; report at any time")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    PARTS[given.part](given, config.get("self_instruct"), config.get("writer"))


def _seeds(given: argparse.Namespace, settings: SelfInstruct, writer: Writer) -> None:
    with locked(Path(settings.folder)), stop_signals() as stop:
        all_seeds = [Seeds(settings, writer, language) for language in settings.languages]
        waiting = sum(len(seeds.waiting()) for seeds in all_seeds)
        journals = {seeds.language: seeds.journal for seeds in all_seeds}
        till = Till(settings, writer, journals, waiting, stop)
        if waiting:
            print(f"Translating {waiting:,} seeds with {writer.run or writer.url}.")
        with _writer(given, settings, writer, waiting) as write:
            rounds.translate(all_seeds, write, till)
        for seeds in all_seeds:
            lost = ", ".join(map(str, seeds.lost))
            print(f"{seeds.file}" + (f": seeds {lost} came back unreadable" if lost else ""))
        print(f"Spent: {cost_text(till.spent(), writer)}. Read and mend them, then `run`.")


def _run(given: argparse.Namespace, settings: SelfInstruct, writer: Writer) -> None:
    with locked(Path(settings.folder)), stop_signals() as stop:
        languages = _languages(settings, writer)
        left = sum(language.left() for language in languages)
        journals = {language.story.language: language.journal for language in languages}
        till = Till(settings, writer, journals, left, stop)
        _say_what_is_ahead(settings, writer, languages, left)
        with _writer(given, settings, writer, left) as write:
            try:
                rounds.run(languages, write, till)
            finally:
                _show(languages, settings, writer)
                spent = till.spent()
                print(f"Spent in all, seeds included: {cost_text(spent, writer)}.")
                if spent.open and not writer.run:
                    print(
                        f"{spent.open} requests broke off after they were sent; what they may have "
                        "cost is not known."
                    )


def _report(given: argparse.Namespace, settings: SelfInstruct, writer: Writer) -> None:
    languages = _languages(settings, writer, writing=False)
    for language in languages:
        language.end()
        language.journal.close()
    _show(languages, settings, writer)


PARTS = {"seeds": _seeds, "run": _run, "report": _report}


def _languages(settings: SelfInstruct, writer: Writer, writing: bool = True) -> list[Language]:
    filters = config.get("task_filters")
    return [Language(settings, writer, filters, code, writing) for code in settings.languages]


def _say_what_is_ahead(
    settings: SelfInstruct, writer: Writer, languages: Sequence[Language], left: int
) -> None:
    total = settings.total * len(languages)
    print(
        f"Rounds: {settings.rounds}; languages: {', '.join(settings.languages)}. Of {total:,} "
        f"requests {left:,} are still to be answered by {writer.run or writer.url}."
    )
    most = writer.usd((0, left * writer.new_tokens))
    if left and most is not None:
        print(f"Their answers cost {rounds.usd_text(most)} at most; prompts come on top.")


def _show(languages: Sequence[Language], settings: SelfInstruct, writer: Writer) -> None:
    """Writes the reports with their figures and says where they are."""
    kept = [report.measured(one.story.kept(), one.rules) for one in languages]
    for one, tasks in zip(languages, kept, strict=True):
        if len(tasks.words):
            pictures.of_language(one.story, tasks, one.rules.similarity, one.folder / "report.png")
        _put(one.folder / "report.md", report.of_language(one, tasks, writer))
        funnel = report.counts([a for answers in one.story.rounds for a in answers])
        print(f"{one.folder}: {report.said(funnel).replace('**', '')}")
    if any(len(tasks.words) for tasks in kept):
        shown = {
            one.story.language: (len(tasks.words), tasks.with_input)
            for one, tasks in zip(languages, kept, strict=True)
        }
        pictures.of_all(shown, Path(settings.folder, "report.png"))
    whole = Path(settings.folder, "report.md")
    _put(whole, report.of_all(languages, writer, kept))
    print(f"Report: {whole}")


def _put(path: Path, text: str) -> None:
    with new_file(path, path.parent) as file:
        file.write(text.encode())


@contextlib.contextmanager
def _writer(
    given: argparse.Namespace, settings: SelfInstruct, writer: Writer, left: int
) -> Iterator[Write]:
    """The endpoint, or a run of ours with its newest step; nobody where nothing is left to ask."""
    if not left:
        yield lambda requests, desk: None
        return
    if not writer.run:
        yield Endpoint(writer, settings.seed).write
        return
    given.run = writer.run
    with model_of(given) as model:
        model, name = for_decoding(model, int8=False), f"{writer.run}, step {model.step}"
        context = model.decoder.size.context
        new = min(writer.new_tokens, context // 2)
        sampling = Sampling(
            new_tokens=new, temperature=writer.temperature, top_p=writer.top_p, seed=settings.seed
        )

        def write(requests: Sequence[Request], desk: Desk) -> None:
            for first in range(0, len(requests), writer.batch):
                if desk.stop.is_set():
                    raise Stopped
                some = requests[first : first + writer.batch]
                for request in some:
                    desk.asked(request)
                # a prompt that is longer than the context loses its beginning
                ids = [
                    i[-(context - new) :] for i in model.tokenizer.encode([r.prompt for r in some])
                ]
                texts = generate(model.decoder, model.params, ids, sampling, rows=model.rows)
                said = model.tokenizer.decode(texts)
                for request, read, wrote, text in zip(some, ids, texts, said, strict=True):
                    body = _body(text, len(read), len(wrote), len(wrote) < new)
                    desk.answered(request, json.dumps(body | {"model": name}, ensure_ascii=False))

        yield write


def _body(text: str, read: int, wrote: int, finished: bool) -> dict:
    """An answer of ours, as an endpoint has it."""
    choice = {
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop" if finished else "length",
    }
    usage = {"prompt_tokens": read, "completion_tokens": wrote}
    return {"choices": [choice], "usage": usage}
