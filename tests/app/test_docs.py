"""The documentation: complete, and without anything from outside."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter

from app import schemas
from app.examples import examples_of
from app.main import create_app
from app.openapi import operations
from app.settings import Settings
from model.tagger import Tagger
from tests.app.service import Service, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_pages_load_everything_from_here(service: Service, path: str) -> None:
    page = await service.client.get(path)

    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    assert [url for url in loaded if not url.startswith("/")] == []
    for url in loaded:
        assert (await service.client.get(url)).status_code == 200


async def test_both_ways_to_send_a_clip_are_described(service: Service) -> None:
    openapi = (await service.client.get("/openapi.json")).json()

    content = openapi["paths"]["/v1/tags"]["post"]["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"
    assert content["application/octet-stream"]["schema"]["format"] == "binary"


async def test_the_query_is_described(service: Service) -> None:
    openapi = (await service.client.get("/openapi.json")).json()

    names = {parameter["name"] for parameter in openapi["paths"]["/v1/tags"]["post"]["parameters"]}
    assert names == {"windows", "threshold", "start_s", "duration_s", "X-Request-Timeout"}


@pytest.mark.parametrize(
    "model",
    [
        model
        for model in vars(schemas).values()
        # Messages of streams are told in docs/stream.md: OpenAPI knows no WebSockets.
        if isinstance(model, type)
        and model.__module__ == "app.schemas"
        and not model.__name__.startswith("Stream")
    ],
)
def test_every_model_has_an_example_that_is_valid(model: type[Any], tagger: Tagger) -> None:
    adapter = TypeAdapter(model)
    own = examples_of(tagger.bundle).get(model.__name__)
    examples = [own] if own else adapter.json_schema()["examples"]

    assert examples
    for example in examples:
        assert adapter.validate_python(example)


async def test_the_examples_are_of_the_tags_that_are_served(service: Service, tagger: Tagger) -> None:
    schemas_told = (await service.client.get("/openapi.json")).json()["components"]["schemas"]

    for name, example in examples_of(tagger.bundle).items():
        assert schemas_told[name]["examples"] == [example]
    assert [tag["tag"] for tag in schemas_told["TagResponse"]["examples"][0]["tags"]] == list(
        tagger.bundle.tags
    )


def test_examples_wait_until_it_is_known_which_tags_there_are() -> None:
    unloaded = create_app(Settings())

    assert "examples" not in unloaded.openapi()["components"]["schemas"]["TagScore"]
    assert unloaded.openapi_schema is None


async def test_every_operation_is_described(service: Service) -> None:
    openapi = service.app.openapi()

    assert set(openapi["paths"]) == {
        *(
            "/v1/tags",
            "/v1/tags/batch",
            "/hf/audio-classification",
            "/v1/model",
            "/health/live",
            "/health/ready",
            "/metrics",
            "/problems",
            "/problems/{slug}",
        )
    }
    assert all(
        operation["summary"] and operation["description"]
        for path in openapi["paths"].values()
        for operation in path.values()
    )


async def test_every_header_of_an_answer_is_told(service: Service) -> None:
    paths = service.app.openapi()["paths"]
    tag = paths["/v1/tags"]["post"]["responses"]

    assert set(tag["200"]["headers"]) == {"Server-Timing", "X-Request-ID"}
    assert set(tag["429"]["headers"]) == {"Retry-After", "X-Request-ID"}
    assert set(paths["/hf/audio-classification"]["post"]["responses"]["200"]["headers"]) == set(
        tag["200"]["headers"]
    )
    assert all(
        "X-Request-ID" in answer["headers"]
        for path in paths.values()
        for operation in path.values()
        for answer in operation["responses"].values()
    )


async def test_a_key_is_asked_for_only_where_it_is_needed(service: Service, tagger: Tagger) -> None:
    async with serving(tagger, api_keys="first") as closed:
        paths = closed.app.openapi()["paths"]
        assert paths["/v1/tags"]["post"]["security"] == [{"key": []}]
        assert "security" not in paths["/health/live"]["get"]
    assert "security" not in service.app.openapi()["paths"]["/v1/tags"]["post"]


async def test_the_model_describes_itself(service: Service, tagger: Tagger) -> None:
    body = (await service.client.get("/v1/model")).json()

    assert [tag["tag"] for tag in body["tags"]] == list(tagger.bundle.tags)
    assert all(tag["threshold"] == tagger.bundle.thresholds[tag["tag"]] for tag in body["tags"])
    assert (body["sha256"], body["device"]) == (tagger.bundle.sha256, "cpu")
    assert body["metrics"] == tagger.bundle.metrics


async def test_every_reference_in_openapi_leads_somewhere(service: Service) -> None:
    openapi = (await service.client.get("/openapi.json")).text

    referred = set(re.findall(r'"#/components/schemas/(\w+)"', openapi))
    assert {"Problem", "LabelRequest", "LabelParameters", "BatchItem"} <= referred
    assert referred <= set(service.app.openapi()["components"]["schemas"])


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_a_browser_is_told_to_load_nothing_from_outside(service: Service, path: str) -> None:
    policy = (await service.client.get(path)).headers["content-security-policy"]

    assert policy.startswith("default-src 'self'")
    assert "http" not in policy


async def test_everything_has_words_and_an_example(service: Service) -> None:
    openapi = service.app.openapi()

    assert [tag["name"] for tag in openapi["tags"] if tag["description"]] == [
        *("tags", "model", "problems", "health")
    ]
    assert list(wordless(openapi)) == []


def wordless(openapi: dict[str, Any]) -> Iterator[str]:
    """What has no description, or no example where one belongs."""
    for operation in operations(openapi):
        name = operation["operationId"]
        if "description" not in operation.get("requestBody", {"description": ""}):
            yield f"{name}: body"
        for parameter in operation.get("parameters", ()):
            exemplified = {"example", "examples"} & {*parameter, *parameter["schema"]}
            if not (parameter.get("description") and exemplified):
                yield f"{name}: {parameter['name']}"
        for status, response in operation["responses"].items():
            if not response["description"] or response["description"] == "Successful Response":
                yield f"{name}: {status}"
            for content in response["content"].values():
                if not {"example", "examples"} & set(content):
                    yield f"{name}: {status}: example"
    for name, schema in openapi["components"]["schemas"].items():
        if not schema.get("description"):
            yield name
        for part, told in schema.get("properties", {}).items():
            if not told.get("description") and "$ref" not in told:  # then the model that it names has words
                yield f"{name}.{part}"
