"""What a request may say: OpenAI's fields and vLLM's, each with its type and range.

The checks and the OpenAPI file are both made from the dataclasses here. A field that is null is
one that was not given.
"""

import difflib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

from polylm_jax.decode.sampling import Penalty
from polylm_jax.errors import UserError
from polylm_jax.jsonl import has_form
from polylm_jax.ranges import Range, fit, hints_of
from polylm_jax.serve.calls import MOST_LIKELIEST

MOST_CHOICES = 128  # prompts of one request, and choices of each

MOST_STOPS, LONGEST_STOP = 16, 256  # texts, and characters of one
DEFAULT_NEW = 16  # tokens of a completion, as OpenAI has it

Stop = tuple[str, ...]
Message = tuple[str, str]  # role and text


class Refusal(Exception):
    """A request that is not answered.

    status: of HTTP. param: the field that is at fault. code: a word for programs. seconds: after
    which it may be tried again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.seconds = status, param, code, seconds


@dataclass(frozen=True)
class StreamOptions:
    """include_usage: whether a last chunk tells the tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False


@dataclass(frozen=True)
class Fields:
    """What both kinds of requests may say. temperature, top_p, top_k and repetition_penalty are
    None where the server chooses."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Range(1, MOST_CHOICES)] = 1
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] | None = None
    stop: Stop = ()
    max_tokens: Annotated[int, Range(0)] | None = None
    max_completion_tokens: Annotated[int, Range(0)] | None = None
    temperature: Annotated[float, Range(0, 2)] | None = None
    top_p: Annotated[float, Range(0, 1)] | None = None
    top_k: Annotated[int, Range(-1)] | None = None
    repetition_penalty: Penalty | None = None
    presence_penalty: Annotated[float, Range(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, Range(-2, 2)] = 0.0


@dataclass(frozen=True)
class Completion(Fields):
    """POST /v1/completions. prompt: texts, or ids of each."""

    prompt: tuple[str | tuple[int, ...], ...] = ()
    echo: bool = False
    logprobs: Annotated[int, Range(0, MOST_LIKELIEST)] | None = None


@dataclass(frozen=True)
class Chat(Fields):
    """POST /v1/chat/completions."""

    messages: tuple[Message, ...] = ()
    logprobs: bool = False
    top_logprobs: Annotated[int, Range(0, MOST_LIKELIEST)] | None = None


NEEDED = {Completion: "prompt", Chat: "messages"}
HINTS = {kind: hints_of(kind) for kind in NEEDED}
# change nothing, whatever they say
PASSED_OVER = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "parallel_tool_calls"),
)
# taken where they ask for what is done anyway
NEUTRAL: MappingProxyType[str, tuple[Any, ...]] = MappingProxyType(
    {
        "best_of": (1,),
        "suffix": ("",),
        "logit_bias": ({},),
        "min_p": (0,),
        "ignore_eos": (False,),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        # of OpenAI's own, which clients send as null
        **dict.fromkeys(("reasoning_effort", "verbosity", "prediction", "audio"), ()),
        "web_search_options": (),
    }
)
ROLES = ("system", "developer", "user", "assistant")
# what OpenAI's answers carry beside their text, sent back by clients; empty here
EMPTY_IN_MESSAGES = (
    *("refusal", "tool_calls", "function_call", "audio", "annotations"),
    *("reasoning_content", "reasoning"),
)


def read_json(body: bytes) -> Any:
    """What a body says; Refusal where it is no JSON, or holds a number or letter that is none."""
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # half a character can be spelt in JSON
    except RecursionError:
        raise Refusal(400, "The body is nested too deeply; send the fields flat.") from None
    except UnicodeError:
        raise Refusal(400, "The body holds bytes or letters that are no UTF-8; mend it.") from None
    except ValueError as error:
        raise Refusal(400, f"The body is no JSON ({str(error)[:100]}); send an object.") from None
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number is too large")
    return value


def parse(kind: type[Completion] | type[Chat], value: Any) -> Any:
    """The fields of a request, checked; Refusal names the field and how to mend it."""
    if not isinstance(value, dict):
        raise Refusal(400, "The body must be one JSON object; send the fields in {}.")
    hints, found = HINTS[kind], {}
    for name, given in value.items():
        if name in PASSED_OVER:
            continue
        if name in NEUTRAL:
            if given is not None and not any(_same(given, one) for one in NEUTRAL[name]):
                raise Refusal(
                    400, f"{name} is not supported here; leave it out.", name, "unsupported"
                )
        elif name not in hints:
            known = [*hints, *PASSED_OVER, *NEUTRAL]
            near = difflib.get_close_matches(name[:60], known, 1, 0)
            raise Refusal(
                400,
                f"{name[:60]!r} is no field of this request; leave it out, or mean {near[0]!r}.",
                _shown(name),
                "unknown_field",
            )
        elif given is not None:
            read = READERS.get(name)
            found[name] = read(given, name) if read else _fitted(given, hints[name], name)
    if NEEDED[kind] not in found:
        raise Refusal(400, f"{NEEDED[kind]} is missing; give it.", NEEDED[kind], "missing_field")
    return kind(**found)


def _same(given: Any, one: Any) -> bool:
    """JSON's true is not its 1."""
    return given == one and isinstance(given, bool) == isinstance(one, bool)


def _fitted(given: Any, hint: Any, name: str) -> Any:
    try:
        return fit(given, hint, name)
    except UserError as error:
        raise Refusal(400, str(error), name, "invalid_value") from None


def _stop(given: Any, name: str) -> Stop:
    texts = [given] if isinstance(given, str) else given
    if not has_form(texts, [str]) or len(texts) > MOST_STOPS:
        _wrong(name, f"it must be a text or a list of at most {MOST_STOPS}")
    if not all(0 < len(text) <= LONGEST_STOP for text in texts):
        _wrong(name, f"each text must have between 1 and {LONGEST_STOP} characters")
    return tuple(texts)


def _prompt(given: Any, name: str) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        return (given,)
    if ids := _ids(given):
        return (ids,)
    if isinstance(given, list) and 0 < len(given) <= MOST_CHOICES:
        if has_form(given, [str]):
            return tuple(given)
        if all(several := tuple(map(_ids, given))):
            return several
    _wrong(name, f"it must be a text, ids, or a list of at most {MOST_CHOICES} texts or lists")


def _ids(given: Any) -> tuple[int, ...]:
    """Ids, of which JSON may make whole floats; none where something else is among them."""
    if not isinstance(given, list) or not has_form(given, [float]):
        return ()
    ids = tuple(map(int, given))
    return ids if ids == tuple(given) and all(0 <= one < 2**31 for one in ids) else ()


def _messages(given: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        _wrong(name, "it must be a list of at least one message")
    return tuple(_message(one, f"{name}[{number}]") for number, one in enumerate(given))


def _message(given: Any, name: str) -> Message:
    if not isinstance(given, dict):
        _wrong(name, 'it must be an object such as {"role": "user", "content": "Hello"}')
    for key, value in given.items():
        if key not in ("role", "content", "name", *EMPTY_IN_MESSAGES):
            _wrong(f"{name}.{_shown(key)}", "leave it out")
        if key in EMPTY_IN_MESSAGES and value not in (None, [], ""):
            _wrong(f"{name}.{key}", "only text can be read here; leave it out")
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or role not in ROLES:
        _wrong(f"{name}.role", f"choose one of {', '.join(ROLES)}")
    if isinstance(content, list) and content:
        parts = {"type": frozenset({"text"}), "text": str}
        if has_form(content, [parts]) and all(part.keys() == parts.keys() for part in content):
            content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        _wrong(f"{name}.content", "it must be a text, or a list of parts of type text")
    if not isinstance(given.get("name"), str | None):
        _wrong(f"{name}.name", "it must be a text")
    return role, content


def _options(given: Any, name: str) -> StreamOptions:
    if not isinstance(given, dict):
        _wrong(name, 'it must be an object such as {"include_usage": true}')
    hints, found = hints_of(StreamOptions), {}
    for key, value in given.items():
        if key not in hints:
            _wrong(f"{name}.{_shown(key)}", "leave it out")
        if value is not None:
            found[key] = _fitted(value, hints[key], f"{name}.{key}")
    return StreamOptions(**found)


def _shown(name: str) -> str:
    """The name of a field as a sentence may have it: on one line, and no longer than that."""
    return repr(name[:60])[1:-1]


def _wrong(name: str, mend: str) -> NoReturn:
    raise Refusal(400, f"{name} is not what is read here; {mend}.", name, "invalid_value")


READERS: MappingProxyType[str, Callable[[Any, str], Any]] = MappingProxyType(
    {
        "stop": _stop,
        "prompt": _prompt,
        "messages": _messages,
        "stream_options": _options,
    }
)

_ANY_TEXT = {"type": "string"}
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}


def schema(kind: type[Completion] | type[Chat], ids: int) -> dict[str, Any]:
    """What `parse` takes, as a JSON Schema. ids: how many there are."""
    some_ids = {**_IDS, "items": {**_IDS["items"], "maximum": ids - 1}}  # type: ignore[dict-item]
    stop = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
    nothing: dict[str, Any] = {"enum": [None, [], ""]}
    message = {
        "type": "object",
        "required": ["role", "content"],
        "additionalProperties": False,
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {
                "oneOf": [
                    _ANY_TEXT,
                    {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["type", "text"],
                            "additionalProperties": False,
                            "properties": {"type": {"enum": ["text"]}, "text": _ANY_TEXT},
                        },
                    },
                ]
            },
            "name": {"type": ["string", "null"]},
            **dict.fromkeys(EMPTY_IN_MESSAGES, nothing),
        },
    }
    hints, options = HINTS[kind], hints_of(StreamOptions)
    special = {
        "prompt": {
            "oneOf": [
                _ANY_TEXT,
                some_ids,
                *(
                    {"type": "array", "minItems": 1, "maxItems": MOST_CHOICES, "items": one}
                    for one in (_ANY_TEXT, some_ids)
                ),
            ]
        },
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": message,
        },
        "stop": {
            "oneOf": [
                {"type": "null"},
                stop,
                {"type": "array", "maxItems": MOST_STOPS, "items": stop},
            ]
        },
        "stream_options": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {name: {"type": ["boolean", "null"]} for name in options},
        },
    }
    names = [field.name for field in fields(kind)]
    return {
        "type": "object",
        "required": [NEEDED[kind]],
        "additionalProperties": False,
        "properties": {
            **{name: special.get(name) or _of_hint(hints[name]) for name in names},
            **{name: {} for name in PASSED_OVER},
            **{name: {"enum": [None, *values]} for name, values in NEUTRAL.items()},
        },
    }


def _of_hint(hint: Any) -> dict[str, Any]:
    """A number, text or truth value, or null, as a JSON Schema."""
    inner = next((one for one in getattr(hint, "__args__", ()) if one is not type(None)), hint)
    if not hasattr(hint, "__metadata__") and hasattr(inner, "__metadata__"):
        hint = inner
    kinds = {int: "integer", float: "number", bool: "boolean", str: "string"}
    [rule] = getattr(hint, "__metadata__", ()) or (None,)
    base = hint.__origin__ if rule else hint
    bounds = {"minimum": rule.least, "maximum": rule.most} if isinstance(rule, Range) else {}
    return {"type": [kinds[base], "null"], **bounds}
