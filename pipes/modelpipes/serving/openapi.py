"""The OpenAPI 3.1 document of what the gateway says over HTTP, made from the types of its answers."""

from __future__ import annotations

from typing import Any

import msgspec

from modelpipes.gateway.wire import (
    ErrorAnswer,
    EventLine,
    LeaseLine,
    LeaseNews,
    ModelEntry,
    ModelList,
    ModelState,
    Residency,
)

REF = "#/components/schemas/{name}"
VERSION = "1"  # of this interface, not of the program


class AskedModel(msgspec.Struct):
    """The one thing of a request's body that the gateway reads; the rest is the engine's."""

    model: str | None = None


class Health(msgspec.Struct):
    status: str = "ok"


FAULTS = {
    400: "The request is malformed, or does not say which model",
    401: "The key is missing or wrong",
    403: "Another web site asks, or by a name that is not this machine's",
    404: "There is no such model",
    408: "The request came too slowly",
    413: "The body is too large",
    500: "The engine failed at this request",
    502: "The engine died, twice, before it answered",
    503: "Too many wait already, or the model cannot be loaded; Retry-After where that may pass",
    504: "The answer took too long",
}
OF_EVERY = (400, 401, 403, 408)
OF_MODEL = (404, 413, 503, 504)


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    types = [ErrorAnswer, ModelList, ModelEntry, Health, ModelState, LeaseLine, LeaseNews, Residency, EventLine]
    _, schemas = msgspec.json.schema_components(types, ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "modelpipes gateway",
            "version": VERSION,
            "description": "Models that share a card, behind OpenAI's API",
        },
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _paths() -> dict[str, Any]:
    name = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    follow = {"name": "follow", "in": "query", "schema": {"enum": ["0", "1"]}, "description": "and the lines to come"}
    health = _operation("The gateway is up", _json(Health), ())
    paths: dict[str, Any] = {
        "/health": {"get": health | {"security": []}},
        "/metrics": {"get": _operation("Figures for Prometheus", _text(), ())},
        "/openapi.json": {"get": _operation("This document", {"application/json": {"schema": {"type": "object"}}}, ())},
        "/residency": {"get": _operation("What is loaded, who waits, and why", _json(Residency), ())},
        "/events": {
            "get": _operation(
                "What happens: a snapshot, then changes; one EventLine in each event's data",
                {"text/event-stream": {"itemSchema": _ref(EventLine)}},
                (400, 503),
            )
            | {"parameters": _EVENTS}
        },
        "/v1/models": {"get": _operation("Every servable model", _json(ModelList), ())},
        "/v1/models/{name}": {"parameters": name, "get": _operation("One model", _json(ModelEntry), (404,))},
        "/models/{name}/logs": {
            "parameters": name,
            "get": _operation("The engine's last lines", _text(), (404, 503)) | {"parameters": [follow]},
        },
        "/models/{name}/lease": {
            "parameters": name,
            "post": _operation(
                "Leave to talk to the engine directly, as long as this answer is open; one JSON value a line",
                {"application/jsonl": {"itemSchema": {"anyOf": [_ref(LeaseLine), _ref(LeaseNews)]}}},
                OF_MODEL,
            ),
        },
    }
    for verb, text in (
        ("load", "Have it resident"),
        ("unload", "Have it gone, once it is idle"),
        ("pin", "Keep it resident"),
        ("unpin", "Keep it no longer"),
    ):
        operation = _operation(text, _json(ModelState), OF_MODEL)
        paths[f"/models/{{name}}/{verb}"] = {"parameters": name, "post": operation}
    for path, (text, schema) in _ENGINES.items():
        content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
        operation = _operation(text, content, (*OF_MODEL, 500, 501, 502))
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": operation}
    return paths


_ID = {"type": "string", "pattern": "^[0-9]{1,18}$"}
_EVENTS: list[dict[str, Any]] = [
    {"name": "since", "in": "query", "schema": _ID, "description": "the last id that is known; 0: all that is kept"},
    {"name": "Last-Event-ID", "in": "header", "schema": _ID, "description": "the same; it goes before"},
    {"name": "follow", "in": "query", "schema": {"enum": ["0", "1"]}, "description": "0: only what there is"},
]


def _request(required: list[str], **properties: Any) -> dict[str, Any]:
    common = {"model": {"type": "string", "description": "may be left out where only one is served"}}
    return {"type": "object", "required": required, "properties": common | properties}


_TEXTS: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_SAMPLING: dict[str, Any] = {
    "stream": {"type": "boolean"},
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "stop": _TEXTS,
    "seed": {"type": "integer"},
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}},
}
_ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/chat/completions": (
        "Answer a conversation",
        _request(["messages"], messages={"type": "array", "minItems": 1, "items": _MESSAGE}, **_SAMPLING),
    ),
    "/v1/completions": ("Go on with a text", _request(["prompt"], prompt=_TEXTS, **_SAMPLING)),
    "/v1/embeddings": ("Turn texts into vectors", _request(["input"], input=_TEXTS)),
    "/v1/rerank": (
        "Rate documents by a query",
        _request(
            ["query", "documents"],
            query={"type": "string"},
            documents={"type": "array", "minItems": 1, "items": {"type": "string"}},
            top_n={"type": "integer", "minimum": 1},
        ),
    ),
}
PASSED_ON = frozenset(_ENGINES)


def _operation(summary: str, content: dict[str, Any], faults: tuple[int, ...]) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": summary, "content": content}}
    for status in sorted({*OF_EVERY, *faults}):
        text = FAULTS.get(status, "The engine was not started for this")
        responses[str(status)] = {"description": text, "content": _json(ErrorAnswer)}
    return {"summary": summary, "responses": responses}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": REF.format(name=kind.__name__)}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(kind)}}


def _text() -> dict[str, Any]:
    return {"text/plain": {"schema": {"type": "string"}}}
