"""What is answered, in OpenAI's forms: whole answers, chunks, log-probabilities, errors."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.serve.calls import Said
from polylm_jax.serve.fields import Refusal
from polylm_jax.serve.requests import Asked, Choice, Piece

JSON = dict[str, Any]
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
# those of Unicode that JSON leaves as they are; many a client splits lines there
LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


@dataclass(frozen=True)
class Form:
    """How one request is answered. id, created, name: what every part of the answer repeats."""

    asked: Asked
    tokenizer: Tokenizer
    id: str
    created: int
    name: str

    def whole(self, pieces: Sequence[Piece], choices: Sequence[Choice]) -> JSON:
        """The answer to a request without a stream; pieces: one a choice, all that it said."""
        told = [
            self._choice(index, piece, last=True, whole=True) for index, piece in enumerate(pieces)
        ]
        kind = "chat.completion" if self.asked.chat else "text_completion"
        return self._head(kind) | {"choices": told, "usage": self.usage(choices)}

    def chunk(self, index: int, piece: Piece) -> bytes:
        """An event of a stream."""
        told = self._choice(index, piece, last=bool(piece.finish), whole=False)
        return event(self._chunk([told]))

    def first(self, index: int) -> bytes:
        """What a chat's stream says of a choice before all text."""
        delta = {"role": "assistant", "content": ""}
        return event(
            self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
        )

    def last(self, choices: Sequence[Choice]) -> bytes:
        """The chunk that tells the tokens, where it is asked for."""
        return event(self._chunk([]) | {"usage": self.usage(choices)}) if self.asked.usage else b""

    def usage(self, choices: Sequence[Choice]) -> JSON:
        prompt, new = self.asked.prompt_tokens, sum(choice.count for choice in choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {
                "cached_tokens": sum(choice.reused for choice in choices[:: self.asked.n])
            },
        }

    def _head(self, kind: str) -> JSON:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}

    def _chunk(self, choices: list[JSON]) -> JSON:
        kind = "chat.completion.chunk" if self.asked.chat else "text_completion"
        # where usage is asked for, every chunk but the last has it empty
        usage = {"usage": None} if self.asked.usage else {}
        return self._head(kind) | {"choices": choices} | usage

    def _choice(self, index: int, piece: Piece, last: bool, whole: bool) -> JSON:
        said: JSON = {"text": piece.text}
        if self.asked.chat and whole:
            said = {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
        elif self.asked.chat:
            said = {"delta": {"content": piece.text} if piece.text else {}}
        logprobs = None
        if self.asked.likeliest is not None:
            shape = _chat_logprobs if self.asked.chat else _legacy_logprobs
            logprobs = shape(self.tokenizer, piece, self.asked.likeliest)
        finish = piece.finish if last else None
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": finish or None}


def joined(pieces: Sequence[Piece]) -> Piece:
    """All that a choice said, as one."""
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        pieces[-1].finish if pieces else "",
    )


def _legacy_logprobs(tokenizer: Tokenizer, piece: Piece, likeliest: int) -> JSON:
    """Of /v1/completions: four lists side by side."""
    shown = [_shown(tokenizer, token.said.token) for token in piece.tokens]
    chances = [_number(token.said.logprob) for token in piece.tokens]
    tops = [_tops(tokenizer, token.said, likeliest) for token in piece.tokens]
    places = [token.at for token in piece.tokens]
    return {
        "tokens": shown,
        "token_logprobs": chances,
        "top_logprobs": tops if likeliest else None,
        "text_offset": places,
    }


def _tops(tokenizer: Tokenizer, said: Said, likeliest: int) -> dict[str, float | None] | None:
    """Text to log-probability of the likeliest and of the token itself; null for a first token."""
    if _number(said.logprob) is None:
        return None
    best = [*said.likeliest[:likeliest], (said.token, said.logprob)]
    # two ids may have one text: the likelier counts
    return {_shown(tokenizer, token): _number(chance) for token, chance in reversed(best)}


def _chat_logprobs(tokenizer: Tokenizer, piece: Piece, likeliest: int) -> JSON:
    def told(token: int, chance: float) -> JSON:
        piece_bytes = tokenizer.pieces[token]
        return {
            "token": _shown(tokenizer, token),
            "logprob": _number(chance),
            "bytes": list(piece_bytes),
        }

    content = [
        told(token.said.token, token.said.logprob)
        | {"top_logprobs": [told(*pair) for pair in token.said.likeliest[:likeliest]]}
        for token in piece.tokens
    ]
    return {"content": content, "refusal": None}


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; as OpenAI has it `bytes:\\xe4` for a part of a character, and the name of
    an id that stands for no text."""
    piece = tokenizer.pieces[token] if token < tokenizer.size else b""
    try:
        return piece.decode() or (
            tokenizer.processor.id_to_piece(token) if token < tokenizer.size else f"<{token}>"
        )
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def event(content: JSON) -> bytes:
    """A server-sent event, one line whatever a client takes for a line's end."""
    return b"data: " + dumps(content) + b"\n\n"


def dumps(content: Any) -> bytes:
    told = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return told.translate(LINE_ENDS).encode()


KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


def error(refusal: Refusal) -> JSON:
    """An error in OpenAI's form."""
    return {
        "error": {
            "message": str(refusal),
            "type": KINDS.get(refusal.status, "invalid_request_error"),
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def models(name: str, created: int, context: int) -> JSON:
    """The list of the one model that there is."""
    return {"object": "list", "data": [model(name, created, context)]}


def model(name: str, created: int, context: int) -> JSON:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "polylm",
        "max_model_len": context,
    }
