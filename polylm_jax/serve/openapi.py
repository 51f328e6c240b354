"""The description of the server's API for programs, OpenAPI 3.1."""

from typing import Any

from polylm_jax.serve.fields import Chat, Completion, schema

JSON = "application/json"
# what is answered where it is no success: status, why
REFUSALS = {
    400: "A field is wrong, or the prompt is longer than the context.",
    401: "The key is missing or wrong.",
    403: "The address or the page that asks is not let in.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    429: "Too many wait; Retry-After says when to ask again.",
    431: "There are too many headers.",
    500: "The engine has failed.",
    503: "The server is about to stop; Retry-After says when to ask again.",
}


def _object(required: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **more},
    }


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
ERROR = _object(
    {
        "error": _object(
            {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            }
        )
    }
)
USAGE = _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNT))
HEAD = {"id": TEXT, "object": TEXT, "created": COUNT, "model": TEXT}
ENDED = {
    "index": COUNT,
    "finish_reason": {"enum": ["stop", "length"]},
    "logprobs": {"type": ["object", "null"]},
}
MESSAGE = _object({"role": {"enum": ["assistant"]}, "content": TEXT})
HEALTH = _object({"status": TEXT, "slots": COUNT, "running": COUNT, "waiting": COUNT})
MODEL = _object({"id": TEXT, "object": TEXT, "created": COUNT, "owned_by": TEXT})


def _answer(choice: dict[str, Any]) -> dict[str, Any]:
    choices = {"type": "array", "minItems": 1, "items": _object(ENDED | choice)}
    return _object(HEAD | {"choices": choices, "usage": USAGE})


def description(ids: int) -> dict[str, Any]:
    """The description. ids: how many the tokenizer has."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "polylm serve", "version": "1"},
        "security": [{}, {"key": []}],
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v1/completions": {
                "post": _post(
                    "Goes on from texts.", schema(Completion, ids), _answer({"text": TEXT})
                )
            },
            "/v1/chat/completions": {
                "post": _post("Answers.", schema(Chat, ids), _answer({"message": MESSAGE}))
            },
            "/v1/models": {
                "get": _get(
                    "The one model.",
                    _object({"object": TEXT, "data": {"type": "array", "items": MODEL}}),
                )
            },
            "/v1/models/{name}": {
                "get": _get("The model.", MODEL)
                | {"parameters": [{"name": "name", "in": "path", "required": True, "schema": TEXT}]}
            },
            "/health": {"get": _health()},
            "/metrics": {"get": _get("Counts for Prometheus.", TEXT, "text/plain")},
            "/run.json": {"get": _get("What the page shows of the run.", {"type": "object"})},
            "/openapi.json": {"get": _get("This description.", {"type": "object"})},
            "/": {"get": _get("The page.", TEXT, "text/html")},
        },
    }


def _post(summary: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    told = {"application/json": {"schema": answer}, "text/event-stream": {"schema": {}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {JSON: {"schema": body}}},
        "responses": {"200": {"description": "The answer.", "content": told}, **_refusals()},
    }


def _get(summary: str, answer: dict[str, Any], kind: str = JSON) -> dict[str, Any]:
    content = {kind: {"schema": answer}}
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, **_refusals()},
    }


def _health() -> dict[str, Any]:
    told = _get("How the server stands; needs no key.", HEALTH)
    stopping = {"description": "It stops, or has failed.", "content": {JSON: {"schema": HEALTH}}}
    return told | {"security": [{}], "responses": told["responses"] | {"503": stopping}}


def _refusals() -> dict[str, Any]:
    content = {JSON: {"schema": ERROR}}
    return {
        str(status): {"description": why, "content": content} for status, why in REFUSALS.items()
    }
