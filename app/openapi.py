"""OpenAPI, completed by what FastAPI cannot know: tags in order, examples, the stream's messages, the key."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from app.admission import needs_key
from app.examples import examples_of, threshold_example
from app.schemas import (
    LabelRequest,
    Problem,
    StreamEnd,
    StreamFinal,
    StreamProblem,
    StreamStart,
    StreamWindow,
)
from model.bundle import Bundle

DESCRIPTION: Final = (
    "Listens to a clip of music and scores independent tags: each score is a calibrated probability, and the "
    "scores do not sum to one. Every failure is a problem (RFC 9457) whose `hint` says what to do next. "
    "Live audio goes to the WebSocket `/v1/stream`, whose messages are named under `x-websockets`."
)
CONTACT: Final = {"name": "The operator of this service"}
LICENSE: Final = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
SERVERS: Final = [{"url": "/", "description": "The service that serves this document."}]
TAGS: Final = [
    {"name": "tags", "description": "Clips in, scores out."},
    {"name": "model", "description": "Which model answers, what its tags mean, and how good it is."},
    {"name": "problems", "description": "What each problem's `type` leads to."},
    {"name": "health", "description": "For orchestrators and monitoring: liveness, readiness, metrics."},
]
_SENT: Final = (StreamStart, StreamEnd)
_TOLD: Final = (StreamWindow, StreamFinal, StreamProblem)
_REF: Final = "#/components/schemas/"


def operation_id(route: APIRoute) -> str:
    """Name an operation, for generated clients, as its function is named."""
    return route.name


def describe(app: FastAPI, *, with_key: bool, bundle: Callable[[], Bundle | None]) -> None:
    """Have the application complete its OpenAPI document.

    Args:
        app: the application, with all its routes.
        with_key: whether a key is needed.
        bundle: asked which tags are served; None as long as it is not known, and then there are no examples
            of them.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        schema = generate()
        _add_schemas(schema)
        _forbid_null(schema)
        _tell_request_ids(schema)
        if known := bundle():
            _give_examples(schema, known)
        else:
            app.openapi_schema = None  # ask again when it is known which tags there are
        if with_key:
            _ask_for_key(schema)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_schemas(schema: dict[str, Any]) -> None:
    """Add the models that no signature names."""
    _, definitions = models_json_schema(
        [
            *((sent, "validation") for sent in (LabelRequest, *_SENT)),
            *((told, "serialization") for told in (Problem, *_TOLD)),
        ],
        ref_template=f"{_REF}{{model}}",
    )
    schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    schema["x-websockets"] = {
        "/v1/stream": {
            "summary": "Tag live audio",
            "description": "StreamStart as text, sound as binary messages, StreamEnd as text; "
            "scores come back at every hop.",
            "sent": {"oneOf": [{"$ref": f"{_REF}{model.__name__}"} for model in _SENT]},
            "received": {"oneOf": [{"$ref": f"{_REF}{model.__name__}"} for model in _TOLD]},
        }
    }


def _tell_request_ids(schema: dict[str, Any]) -> None:
    """Every answer bears the id of its request."""
    schema["components"]["headers"] = {
        "RequestId": {
            "description": "The id that came with the request, or one that was made; the log has it, too.",
            "schema": {"type": "string", "minLength": 1},
        }
    }
    for operation in operations(schema):
        for answer in operation["responses"].values():
            answer.setdefault("headers", {})["X-Request-ID"] = {"$ref": "#/components/headers/RequestId"}


def _forbid_null(schema: dict[str, Any]) -> None:
    """A query has no null: a parameter is not there, or empty."""
    for operation in operations(schema):
        for parameter in operation.get("parameters", ()):
            kinds = parameter["schema"].pop("anyOf", [])
            for kind in kinds:
                if kind != {"type": "null"}:
                    parameter["schema"].update(kind)


def _give_examples(schema: dict[str, Any], bundle: Bundle) -> None:
    """Add what is exemplified with the bundle's own tags."""
    schemas = schema["components"]["schemas"]
    for name, example in examples_of(bundle).items():
        schemas[name]["examples"] = [example]
    for operation in operations(schema):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] == "threshold":
                parameter["schema"]["examples"] = ["0.5", threshold_example(bundle)]
        answer = operation["responses"]["200"]["content"].get("application/json")
        if answer and answer["schema"]:  # a route of no model has an empty one
            answer["example"] = _example_of(answer["schema"], schemas)


def _example_of(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    if schema.get("type") == "array":
        return [_example_of(schema["items"], schemas)]
    return schemas[schema["$ref"].removeprefix(_REF)]["examples"][0]


def _ask_for_key(schema: dict[str, Any]) -> None:
    scheme = {"type": "http", "scheme": "bearer", "description": "A key that the operator gave out."}
    schema["components"]["securitySchemes"] = {"key": scheme}
    for path, items in schema["paths"].items():
        for operation in items.values() if needs_key(path) else ():
            operation["security"] = [{"key": []}]


def operations(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every operation of an OpenAPI document of ours: its path items hold nothing else."""
    for items in schema["paths"].values():
        yield from items.values()
