"""The calls that lm-eval makes of a model, on ours: its numbers, without torch or transformers.

Texts become ids as the exported tokenizer has them, which knows `</s>` in a text: a chat template
writes it there. Imports no lm-eval but in `evaluate_with`.
"""

import contextlib
import importlib
import itertools
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from polylm_jax.console import LiveLine
from polylm_jax.data.tokenizer import EOS, Tokenizer
from polylm_jax.decode import chat, weights
from polylm_jax.decode.sampling import Sampling
from polylm_jax.errors import UserError
from polylm_jax.evaluation import score
from polylm_jax.evaluation.answers import Answer, Question, answer
from polylm_jax.evaluation.likelihood import Score, likelihoods
from polylm_jax.evaluation.score import encode_pairs
from polylm_jax.model.parameters import count

NAME = "polylm_jax"  # of the model, in lm-eval's table
MISSING = 'lm-eval is not installed; pip install "polylm_jax[eval]" and run it again.'
VERBS = (["run"], ["ls"], ["validate"])  # of lm-eval, which takes "run" for granted
NEW_TOKENS = 256  # lm-eval's, where a task does not say
NEW_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DRAWN_FROM = 50  # transformers' top_k where tokens are drawn and a task does not say
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
# settings of tasks that say what is so anyway
PLAIN = (("num_beams", 1), ("num_return_sequences", 1), ("use_cache", True))
_MARKS = re.compile("|".join(f"({mark})" for mark in chat.CONTROLS))


@dataclass(frozen=True)
class Subject(score.Subject):
    """The model that is asked. batch: prompts, or rows of `length` tokens, at once. settings: how
    its conversations are rendered."""

    batch: int = 8
    length: int = 512
    settings: chat.ChatSettings = chat.ChatSettings()  # noqa: RUF009, a frozen dataclass

    @cached_property
    def for_decoding(self) -> Any:
        return weights.for_decoding(
            self.params, self.decoder.size, self.decoder.compute.dtype, int8=False
        )

    @property
    def whole_batch(self) -> int:
        return -(-self.batch // self.ways) * self.ways


@dataclass(frozen=True)
class _Marked:
    """A tokenizer that takes `<unk>`, `<s>` and `</s>` in a text for their ids."""

    tokenizer: Tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        marked = [bool(_MARKS.search(text)) for text in texts]
        plain = [text for text, has in zip(texts, marked, strict=True) if not has]
        found = iter(self.tokenizer.encode(plain))
        return [
            self._with_marks(text) if has else next(found)
            for text, has in zip(texts, marked, strict=True)
        ]

    def _with_marks(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(filter(None, _MARKS.split(text))):
            encode = self.tokenizer.encode_inside if place else self.tokenizer.encode
            mark = part in chat.CONTROLS
            ids += [chat.CONTROLS.index(part)] if mark else encode([part])[0]
        return ids


# Told what answers a request, by its place, as soon as its batch is computed.
Keep = Callable[[int, Any], None]


def _keep_nothing(place: int, found: Any) -> None:
    pass


def log_likelihoods(
    subject: Subject, pairs: Sequence[tuple[str, str]], keep: Keep = _keep_nothing
) -> list[tuple[float, bool]]:
    """Of each (context, continuation): sum of ln p of the continuation, whether it is greedy.

    A context without room loses its beginning. A continuation longer than the model's context,
    where lm-eval ends with an assertion, is scored in windows, and an empty one has 0; how many
    there were is said on stderr.
    """
    tokenizer: Any = _Marked(subject.tokenizer)
    # lm-eval has a continuation that begins with </s> follow that one, not another
    ids = [
        (head, tail[1:] if head == [EOS] == tail[:1] and len(tail) > 1 and not text else tail)
        for (text, _), (head, tail) in zip(pairs, encode_pairs(tokenizer, pairs), strict=True)
    ]
    context = subject.decoder.size.context
    too_long = sum(len(tail) > context for _, tail in ids)
    cut = sum(len(head) + len(tail) > context + 1 for head, tail in ids) - too_long
    _note(cut, f"contexts lose their beginning, as the model's is {context} tokens")
    _note(too_long, f"continuations are longer than {context} tokens and scored in windows")
    _note(sum(not tail for _, tail in ids), "continuations are empty; their log-likelihood is 0")
    return _scored(subject, ids, keep)


def rolling_log_likelihoods(
    subject: Subject, texts: Sequence[str], keep: Keep = _keep_nothing
) -> list[float]:
    """Of each whole text, which follows `</s>`: sum of ln p of its tokens; of an empty one 0."""
    ids = [([EOS], text) for text in _Marked(subject.tokenizer).encode(texts)]
    return [found for found, _ in _scored(subject, ids, lambda place, one: keep(place, one[0]))]


def answers_until(
    subject: Subject, asked: Sequence[tuple[str, dict[str, Any]]], keep: Keep = _keep_nothing
) -> list[str]:
    """The answer to each (prompt, generation settings as lm-eval's tasks have them).

    UserError for a setting that has no meaning here.
    """
    ids = _Marked(subject.tokenizer).encode([prompt for prompt, _ in asked])
    settings = [_generation(one) for _, one in asked]
    before: Counter[tuple[Any, ...]] = Counter()
    groups: dict[Sampling, list[int]] = {}
    questions = []
    for number, (prompt, (stops, new_tokens, sampling)) in enumerate(
        zip(ids, settings, strict=True)
    ):
        groups.setdefault(sampling, []).append(number)
        key = (sampling, *prompt)
        questions.append(Question(prompt, stops, new_tokens, before[key]))
        before[key] += 1
    texts: dict[int, str] = {}
    lost = 0
    with _counting("answers", len(asked)) as tell:
        for sampling, numbers in groups.items():

            def done(some: dict[int, Answer], numbers: list[int] = numbers) -> None:
                for place, one in some.items():
                    keep(numbers[place], one.text)
                tell(len(some))

            found = answer(
                subject.decoder,
                subject.for_decoding,
                subject.tokenizer,
                [questions[i] for i in numbers],
                subject.whole_batch,
                sampling,
                done,
            )
            texts |= {i: one.text for i, one in zip(numbers, found, strict=True)}
            lost += sum(one.lost > 0 for one in found)
    _note(lost, f"prompts lose their beginning, as {subject.decoder.size.context} tokens are all")
    return [texts[i] for i in range(len(asked))]


def rendered(
    settings: chat.ChatSettings, history: Sequence[dict[str, str]], prompt: bool = True
) -> str:
    """The text of a conversation in the run's format, as the exported chat template has it.

    history: messages with "role" and "content"; those of the system are left out, as lm-eval does
    where a template has no place for them. prompt: whether an answer is awaited; otherwise the
    last message is an answer that goes on. UserError where the roles do not alternate.
    """
    messages = [message for message in history if message["role"] != "system"]
    roles = [message["role"] for message in messages]
    if roles != [("user", "assistant")[place % 2] for place in range(len(roles))]:
        raise UserError(
            "the messages must be of user and assistant by turns, the user's first, and here they "
            f"are {', '.join(roles)}; see --fewshot_as_multiturn."
        )
    texts = [message["content"] for message in messages]
    turns = [chat.Turn(*pair) for pair in itertools.zip_longest(texts[::2], texts[1::2])]
    segments = chat.render(turns, chat.FORMATS[settings.format], settings.keep_ends)
    end = chat.CONTROLS[EOS]
    text = "".join(one.text + (end if one.answer else "") for one in segments)
    return text if prompt else text.removesuffix(end)


def evaluate_with(
    make: Callable[[int], Subject], run: str, named: dict[str, Any], given: list[str]
) -> int:
    """Runs lm-eval's own command line on our model; returns its exit status.

    make: function (batch) -> the model. run: its folder, after which lm-eval names its results.
    named: what else results.json says of it. given: lm-eval's arguments, but for the model's.
    UserError where lm-eval is not there, or ends with an error of its own.
    """
    for flag in given:
        if flag.split("=")[0] in ("--model", "--model_args", "-M", "-a"):
            raise UserError(f"{flag.split('=')[0]} is this run's already; leave it out.")
    modules = ("lm_eval.api.model", "lm_eval.api.registry", "lm_eval.__main__")
    try:
        api, registry, program = map(importlib.import_module, modules)
    except ImportError as error:
        raise UserError(MISSING) from error
    verb, rest = (given[0], given[1:]) if given[:1] in VERBS else ("run", given)
    # lm-eval names the folder of its results so
    model = ["--model", NAME, "--model_args", f"pretrained={re.sub('[,=]', '_', run)}"]
    adapter: Any = _adapter(api.LM)
    adapter.make, adapter.named = staticmethod(make), named
    registry.model_registry.register(NAME, target=adapter)
    former, sys.argv = sys.argv, ["lm-eval", verb, *(model if verb == "run" else []), *rest]
    try:
        program.cli_evaluate()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError:
        raise
    except Exception as error:
        if _ours(error):
            raise
        said = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(f"lm-eval ended with {type(error).__name__}: {said}.") from error
    finally:
        sys.argv = former
    return 0


@cache
def _adapter(base: Any) -> type:
    """lm-eval's LM that makes the calls above; one class, as lm-eval takes a name only once."""

    class PolyLM(base):
        make: Callable[[int], Subject]
        named: dict[str, Any]

        def __init__(self, subject: Subject) -> None:
            super().__init__()
            self._subject = subject

        @classmethod
        def create_from_arg_obj(cls, arguments: Any, more: Any = None) -> Any:
            return cls(cls.make(_batch((more or {}).get("batch_size"))))

        create_from_arg_string = create_from_arg_obj

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._kept("loglikelihood", log_likelihoods, requests)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._kept("loglikelihood_rolling", _rolling, requests)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._kept("generate_until", answers_until, requests)

        def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
            return rendered(self._subject.settings, history, add_generation_prompt)

        def chat_template(self, chat_template: Any = False) -> str | None:
            settings = self._subject.settings
            return chat.template(chat.FORMATS[settings.format], settings.keep_ends)

        @property
        def tokenizer_name(self) -> str:
            settings = self._subject.settings
            return f"polylm_{self._subject.tokenizer.fingerprint[:16]}_{settings.format}"

        def get_model_info(self) -> dict[str, Any]:
            compute = self._subject.decoder.compute
            parameters = count(self._subject.decoder.size)
            return {"model_num_parameters": parameters, "model_dtype": compute.dtype, **self.named}

        def _kept(self, name: str, call: Callable[..., list[Any]], requests: Any) -> list[Any]:
            """The answers, each in lm-eval's cache as soon as it is there: whoever is killed goes
            on from it."""
            asked = [request.args for request in requests]
            return call(
                self._subject,
                asked,
                lambda place, one: self.cache_hook.add_partial(name, asked[place], one),
            )

    return PolyLM


def _rolling(subject: Subject, asked: Sequence[tuple[str, ...]], keep: Keep) -> list[float]:
    return rolling_log_likelihoods(subject, [one[0] for one in asked], keep)


def _batch(given: Any) -> int:
    """lm-eval's --batch_size as a number; "auto" is left to us."""
    text = str(given or Subject.batch)
    if text.startswith("auto"):
        return 2 * Subject.batch
    if not text.isdigit() or not int(text):
        raise UserError(f"--batch_size {text} is no number; give one from 1 on, or auto.")
    return int(text)


def _scored(
    subject: Subject, ids: Sequence[tuple[list[int], list[int]]], keep: Keep
) -> list[tuple[float, bool]]:
    with _counting("scored", len(ids)) as tell:

        def done(scores: dict[int, Score]) -> None:
            for place, one in scores.items():
                keep(place, (one.log_likelihood, one.greedy))
            tell(len(scores))

        found = likelihoods(subject, ids, subject.length, subject.batch, done)
    return [(found[place].log_likelihood, found[place].greedy) for place in range(len(ids))]


def _generation(given: dict[str, Any]) -> tuple[tuple[str, ...], int, Sampling]:
    """The stop strings, the most new tokens and how each is chosen, of a task's settings."""
    left = dict(given)
    until = left.pop("until", None) or []
    stops = [until] if isinstance(until, str) else list(until)
    limits = [left.pop(name, None) for name in NEW_TOKENS_NAMES]
    new_tokens = next((int(limit) for limit in limits if limit is not None), NEW_TOKENS)
    values = {name: left.pop(name) for name in SAMPLING if left.get(name) is not None}
    drawn = left.pop("do_sample", bool(values.get("temperature")))
    if not drawn:
        values = {k: v for k, v in values.items() if k == "repetition_penalty"}
    else:
        values = {"temperature": 1.0, "top_k": DRAWN_FROM} | values
    unknown = [name for name, value in left.items() if (name, value) not in PLAIN]
    if unknown:
        raise UserError(
            f"the generation setting {unknown[0]} = {left[unknown[0]]!r} has no meaning here; take "
            f"it out, or set one of until, {NEW_TOKENS_NAMES[0]}, do_sample, {', '.join(SAMPLING)}."
        )
    chosen: dict[str, Any] = {k: (int if k == "top_k" else float)(v) for k, v in values.items()}
    sampling = Sampling(**chosen)
    return (*stops, chat.CONTROLS[EOS]), new_tokens, sampling


@contextlib.contextmanager
def _counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how many more are done, and shows it."""
    line, so_far = LiveLine(10), 0

    def tell(more: int) -> None:
        nonlocal so_far
        so_far += more
        line.show(f"{so_far:,} of {total:,} {what}")

    yield tell
    line.close()


def _note(number: int, what: str) -> None:
    if number:
        print(f"note: {number:,} {what}.", file=sys.stderr)


def _ours(error: Exception) -> bool:
    """Whether the error came up in what lm-eval called of this package."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    return any(frame.f_globals.get("__name__", "").startswith("polylm_jax.") for frame in frames)
