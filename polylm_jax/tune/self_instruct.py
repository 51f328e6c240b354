"""Rounds of self-instruct (the paper's §4): each a pure function of the seeds and the journal.

A round's prompts come from the seed number, the seeds and the pool after the round before it; its
answers are folded in the order of its requests, whenever they came. So a run that was killed,
whenever and however often, and one with other concurrency end with the same files.

A language has a folder of its own:

    seeds.jsonl      what the prompts show, for a person to read before `run`
    journal.jsonl    what was asked and answered
    xx.jsonl         the tasks, in MultiAlpaca's form
    rejected.jsonl   the others, each with its reason
    made_from.json   what decides them; another thing is refused
    report.md, report.png
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from polylm_jax.data.languages import is_language, name_of, source_named
from polylm_jax.errors import UserError
from polylm_jax.files import LocalPlace, MaybeLocalPlace, new_file
from polylm_jax.ranges import TINY, Range, Seed, check
from polylm_jax.tune import prompts
from polylm_jax.tune import seeds as seed_files
from polylm_jax.tune.filters import Rules, TaskFilters, Verdict, judge, rules_of
from polylm_jax.tune.journal import Journal, Reply, Request
from polylm_jax.tune.parse import Task, parse
from polylm_jax.tune.rouge import Texts
from polylm_jax.tune.seeds import OURS, as_lines, read_seeds, translated
from polylm_jax.tune.words import segmenter
from polylm_jax.tune.writer import Writer

PAPERS = ("ar", "de", "es", "fr", "id", "ja", "ko", "pt", "ru", "th", "vi")
SEEDS, JOURNAL, REJECTED, MADE_FROM = (
    "seeds.jsonl",
    "journal.jsonl",
    "rejected.jsonl",
    "made_from.json",
)


@dataclass(frozen=True)
class SelfInstruct:
    """How many tasks are asked for, and how; the paper's values (§4 and App. A).

    folder: where each language gets a folder.
    languages: their codes, of ISO 639; of any language that is written with spaces, and zh, ja,
        ko, th.
    seeds: a file of them in English, "" for ours; with {language} in it, files of seeds that are
        in each language already.
    rounds: how many. first_requests: requests of the first. requests: of each one after it.
    shown_seeds, shown_tasks: demonstrations in a request, from the seeds and from the pool. While
        the pool has too few, seeds stand for them (what the paper does there is not known).
    tasks: in the list that a request asks for, demonstrations included.
    seed: decides which are shown.
    most_usd: no request is sent that could make the whole cost more.
    """

    folder: LocalPlace = "runs/self_instruct"
    languages: tuple[str, ...] = PAPERS
    seeds: MaybeLocalPlace = ""
    rounds: Annotated[int, Range(1, 10_000)] = 10
    first_requests: Annotated[int, Range(1, 10**6)] = 10
    requests: Annotated[int, Range(1, 10**6)] = 100
    shown_seeds: Annotated[int, Range(0, 100)] = 2
    shown_tasks: Annotated[int, Range(0, 100)] = 1
    tasks: Annotated[int, Range(2, 1000)] = 20
    seed: Seed = 0
    most_usd: Annotated[float, Range(TINY, 10**9, also=(0, "no limit"))] = 0.0

    def __post_init__(self) -> None:
        check(self, "self_instruct")
        if not 1 <= self.shown < self.tasks:
            raise UserError(
                f"self_instruct.tasks = {self.tasks} with self_instruct.shown_seeds = "
                f"{self.shown_seeds} and self_instruct.shown_tasks = {self.shown_tasks}; a request "
                "must show at least one task and ask for at least one more."
            )
        if not self.languages or len(set(self.languages)) < len(self.languages):
            raise UserError("self_instruct.languages names none, or one twice; name each once.")
        for language in self.languages:
            if not is_language(language) or source_named(language) != language:
                raise UserError(
                    f'self_instruct.languages has "{language}", which is no code of a language; '
                    "write one of ISO 639, like de, swh or pt-BR."
                )

    @property
    def shown(self) -> int:
        """Demonstrations in a request."""
        return self.shown_seeds + self.shown_tasks

    def requests_of(self, number: int) -> int:
        """Requests of a round, counted from 1."""
        return self.first_requests if number == 1 else self.requests

    @property
    def total(self) -> int:
        """Requests of all rounds in one language."""
        return sum(self.requests_of(number) for number in range(1, self.rounds + 1))


@dataclass(frozen=True)
class Answer:
    """One reply of a round, judged. reply: None where it has not come."""

    request: Request
    reply: Reply | None
    verdicts: tuple[Verdict, ...] = ()


@dataclass
class Story:
    """All that came of one language, round after round.

    rounds: the answers of each, in the order of its requests; only the last may lack some.
    """

    language: str
    seeds: tuple[Task, ...]
    rounds: list[list[Answer]] = field(default_factory=list)

    def verdicts(self) -> Iterator[tuple[int, Answer, Verdict]]:
        """Each task that came, with its round (from 1) and its answer, in order."""
        for number, answers in enumerate(self.rounds, 1):
            for answer in answers:
                for verdict in answer.verdicts:
                    yield number, answer, verdict

    def kept(self) -> list[Task]:
        """The tasks of the file."""
        return [verdict.task for _, _, verdict in self.verdicts() if verdict.task]


class Language:
    """One language on its way: seeds, rules and journal, and how far they have come.

    UserError where its folder has no seeds, or was made from other things.
    writing: False only reads, while another process may write.
    """

    def __init__(
        self,
        settings: SelfInstruct,
        writer: Writer,
        filters: TaskFilters,
        language: str,
        writing: bool = True,
    ) -> None:
        self.folder = Path(settings.folder, language)
        self.rules: Rules = rules_of(filters, language)
        self._settings, self._writer = settings, writer
        file = self.folder / SEEDS
        if not file.is_file():
            raise UserError(
                f"there are no seeds in {file}; make them with `polylm self-instruct seeds` and "
                "the same settings, and read them."
            )
        seeds = tuple(seed.task for seed in read_seeds(file))
        if len(seeds) < settings.shown:
            raise UserError(
                f"{file} has {len(seeds)} seeds and a request shows {settings.shown}; add some."
            )
        if not writing and not (self.folder / MADE_FROM).is_file():
            raise UserError(
                f"nothing was asked for {self.folder} yet; begin with `polylm self-instruct run`."
            )
        _same(self.folder, _made_from(settings, writer, filters, language, file.read_bytes()))
        self.journal = Journal(self.folder / JOURNAL, writing)
        self.story = Story(language, seeds)
        self._pool, self._texts = Texts(self.rules.words), [seed.instruction for seed in seeds]
        self._pool.add(self._texts)

    def advance(self) -> list[Request]:
        """Folds what the journal has, round after round; returns the requests that wait for an
        answer, all of one round, or none where all rounds are done."""
        while len(self.story.rounds) < self._settings.rounds:
            number = len(self.story.rounds) + 1
            asked = self._requests(number)
            waiting = [one for one in asked if self.journal.reply(one) is None]
            if waiting:
                self._refuse_other(waiting)
                return waiting
            self._fold(asked)
        return []

    def left(self) -> int:
        """How many requests have no answer yet, of all rounds."""
        waiting = self.advance()
        if not waiting:
            return 0
        done = sum(map(len, self.story.rounds)) + self._settings.requests_of(waiting[0].round)
        return self._settings.total - done + len(waiting)

    def end(self) -> None:
        """Folds all that was answered, a last round that is not whole as well."""
        self.advance()
        number = len(self.story.rounds) + 1
        if number <= self._settings.rounds:
            asked = self._requests(number)
            if any(self.journal.reply(one) for one in asked):
                self._fold(asked)

    def write(self) -> None:
        """The tasks, and the rejected ones with their reasons; each file is whole or as before."""
        kept = [asdict(task) for task in self.story.kept()]
        rejected = [
            {
                **{
                    name: getattr(verdict.block, name)
                    for name in ("instruction", "input", "output")
                },
                "reason": verdict.reason,
                "because": verdict.because,
                "round": number,
                "request": answer.request.number,
            }
            for number, answer, verdict in self.story.verdicts()
            if verdict.reason
        ]
        for name, records in ((f"{self.story.language}.jsonl", kept), (REJECTED, rejected)):
            with new_file(self.folder / name, self.folder) as file:
                file.writelines(
                    (json.dumps(one, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
                    for one in records
                )

    def _refuse_other(self, waiting: Sequence[Request]) -> None:
        """UserError where one of them was asked before with other words: it was paid for."""
        for one in waiting:
            if self.journal.asked_before(one):
                raise UserError(
                    f"{self.journal.path} has asked request {one.number + 1} of round {one.round} "
                    "with another prompt: the seeds, a segmenter or this program have changed; go "
                    "on as you began, or set self_instruct.folder to another folder."
                )

    def _fold(self, asked: Sequence[Request]) -> None:
        answers = []
        for request in asked:
            reply = self.journal.reply(request)
            blocks = parse(reply.text, reply.finished, self.rules.lexicon.headers) if reply else []
            verdicts = judge(blocks, self._pool, self._texts, self.rules)
            answers.append(Answer(request, reply, tuple(verdicts)))
        self.story.rounds.append(answers)

    def _requests(self, number: int) -> list[Request]:
        settings, story = self._settings, self.story
        pool = story.kept()
        name = english_name(story.language)
        asked = []
        for i in range(settings.requests_of(number)):
            key = f"{settings.seed} {story.language} {number} {i}"
            tasks = min(settings.shown_tasks, len(pool))
            shown = [story.seeds[j] for j in draw(len(story.seeds), settings.shown - tasks, key)]
            shown += [pool[j] for j in draw(len(pool), tasks, f"{key} pool")]
            prompt = prompts.of_tasks(name, shown, settings.tasks)
            asked.append(Request(story.language, number, i, prompt, self._writer.made_with))
        return asked


def english_name(language: str) -> str:
    """What a prompt calls a language: "German", "Portuguese (pt-BR)"."""
    return name_of(language) if "-" in language else name_of(language).rpartition(" (")[0]


def draw(count: int, many: int, key: str) -> list[int]:
    """Different numbers below `count`, a pure function of the key, on any machine for ever."""
    drawn: dict[int, None] = {}
    attempt = 0
    while len(drawn) < min(many, count):
        digest = hashlib.sha256(f"{key} {attempt}".encode()).digest()
        drawn[int.from_bytes(digest[:8], "big") % count] = None
        attempt += 1
    return list(drawn)


class Seeds:
    """The seeds of one language on their way into it. Ours and self-instruct's are in English."""

    def __init__(self, settings: SelfInstruct, writer: Writer, language: str) -> None:
        self.language, self.folder = language, Path(settings.folder, language)
        self.file = self.folder / SEEDS
        path = settings.seeds or str(OURS)
        self.seeds = read_seeds(path.replace("{language}", language))
        self.lost: list[int] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder / JOURNAL)
        self._requests: list[Request | None] = [None] * len(self.seeds)
        if language != "en" and "{language}" not in path:
            name = english_name(language)
            self._requests = [
                Request(language, 0, i, prompts.of_translation(name, seed.task), writer.made_with)
                for i, seed in enumerate(self.seeds)
            ]

    def waiting(self) -> list[Request]:
        """What is still to be translated; nothing where the file is there."""
        if self.file.exists():
            return []
        return [one for one in self._requests if one and self.journal.reply(one) is None]

    def write(self) -> None:
        """The file, unless it is there: a person may have mended it. Those that came back
        unreadable are left out and numbered, from 1, in `lost`."""
        if self.file.exists():
            return
        seeds: list[seed_files.Seed] = []
        for number, (seed, request) in enumerate(zip(self.seeds, self._requests, strict=True), 1):
            new: seed_files.Seed | None = seed
            if request:
                reply = self.journal.reply(request)
                blocks = parse(reply.text, reply.finished, ((), (), ())) if reply else []
                new = translated(seed, blocks)
            if new is None:
                self.lost.append(number)
            else:
                seeds.append(new)
        if not seeds:
            raise UserError(
                f"no seed came back from the writer in {self.language} as a task; write some into "
                f"{self.file}, one JSON object a line with instruction, input and output."
            )
        with new_file(self.file, self.folder) as file:
            file.write(as_lines(seeds))


def _made_from(
    settings: SelfInstruct, writer: Writer, filters: TaskFilters, language: str, seeds: bytes
) -> dict:
    """All that decides a language's tasks but the number of rounds, which may grow."""
    rules = rules_of(filters, language)
    text = prompts.of_tasks(english_name(language), (), settings.tasks)
    return {
        "seeds.jsonl": hashlib.sha256(seeds).hexdigest(),
        "prompt": hashlib.sha256(text.encode()).hexdigest(),
        "writer": writer.made_with,
        "words": segmenter(language),
        **{
            f"self_instruct.{name}": getattr(settings, name)
            for name in (
                "first_requests",
                "requests",
                "shown_seeds",
                "shown_tasks",
                "tasks",
                "seed",
            )
        },
        **{
            f"task_filters.{name}": getattr(rules, name)
            for name in (
                "similarity",
                "input_overlap",
                "least_words",
                "most_words",
                "script_share",
                "sure_words",
            )
        },
        "task_filters.keywords": rules.keywords.pattern if rules.keywords else "",
    }


def _same(folder: Path, made_from: dict) -> None:
    note = folder / MADE_FROM
    if not note.is_file():
        with new_file(note, folder) as file:
            file.write((json.dumps(made_from, indent=1, ensure_ascii=False) + "\n").encode())
        return
    try:
        before = json.loads(note.read_text("utf-8"))
    except ValueError:
        raise UserError(f"{note} is broken; restore it or give another folder.") from None
    other = [name for name, value in made_from.items() if before.get(name) != value]
    if other:
        raise UserError(
            f"{folder} was begun with another {' and another '.join(other)}; what was paid for "
            "would be asked again: set it back, or set self_instruct.folder to another folder."
        )
