"""Every failure is a problem, declared and explained."""

from typing import Any

import pytest

from app.openapi import operations
from app.problems import AUDIO_PROBLEMS, PROBLEMS, ProblemError, from_audio
from app.schemas import Problem
from model.audio import AudioError
from tests.app.service import Service, check_problem

pytestmark = pytest.mark.anyio


@pytest.fixture
def openapi(service: Service) -> dict[str, Any]:
    return service.app.openapi()


async def test_the_framework_s_own_failures_are_problems(service: Service) -> None:
    check_problem(await service.client.get("/v1/nothing"), 404, "not-found")
    check_problem(await service.client.post("/v1/tags/"), 404, "not-found")
    wrong_method = await service.client.delete("/v1/tags")
    check_problem(wrong_method, 405, "method-not-allowed")
    assert "POST" in wrong_method.headers["allow"]
    check_problem(await service.client.post("/v1/tags?windows=maybe"), 422, "bad-parameter")


async def test_an_unexpected_failure_hides_its_internals_and_is_logged(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise RuntimeError("secret internals")

    service.app.add_api_route("/broken", broken)
    response = await service.client.get("/broken", headers={"X-Request-ID": "find-me"})

    problem = check_problem(response, 500, "internal")
    assert "secret" not in str(problem)
    record = next(record for record in caplog.records if record.exc_info)
    assert record.__dict__["request_id"] == "find-me"
    assert "secret internals" in str(record.exc_info[1] if record.exc_info else "")


@pytest.mark.parametrize("kind", AUDIO_PROBLEMS)
def test_the_decoder_s_words_are_kept(kind: type[AudioError]) -> None:
    problem = from_audio(kind("what was found", "what to do"))

    assert (problem.detail, problem.hint) == ("what was found", "what to do")


def test_every_audio_error_has_its_problem() -> None:
    assert set(AudioError.__subclasses__()) == set(AUDIO_PROBLEMS)


@pytest.mark.parametrize("slug", PROBLEMS)
async def test_each_problem_s_type_leads_to_its_description(service: Service, slug: str) -> None:
    described = Problem.model_validate((await service.client.get(f"/problems/{slug}")).json())

    assert described.type == f"/problems/{slug}"
    assert described.status == PROBLEMS[slug].status
    listed = (await service.client.get("/problems")).json()
    assert described.model_dump() in listed


async def test_an_unknown_problem_is_not_found(service: Service) -> None:
    check_problem(await service.client.get("/problems/nothing"), 404, "not-found")


async def test_the_instance_is_a_reference_whatever_the_path(service: Service) -> None:
    response = await service.client.get("/v1/a%20b%3Cx%3E%0A")

    assert check_problem(response, 404, "not-found")["instance"].startswith("/v1/a%20b%3Cx%3E%0A#")


def test_no_parameter_of_a_query_can_be_null(openapi: dict[str, Any]) -> None:
    parameters = [found for found in operations(openapi) for found in found.get("parameters", ())]

    assert {parameter["schema"]["type"] for parameter in parameters} == {
        "boolean",
        "integer",
        "number",
        "string",
    }
    assert not any("anyOf" in parameter["schema"] for parameter in parameters)


ONLY_STREAMED = ("stream-idle", "origin", "listeners-full")  # OpenAPI knows no WebSockets: see docs/stream.md
ONLY_THERE = {"too-many-clips": "/v1/tags/batch", "bad-json": "/hf/audio-classification"}


@pytest.mark.parametrize(
    "slug",
    [
        slug
        for slug in PROBLEMS
        if slug not in ("bad-request", "not-found", "method-not-allowed", *ONLY_STREAMED)
    ],
)
def test_tagging_declares_each_problem_with_an_example(openapi: dict[str, Any], slug: str) -> None:
    path = ONLY_THERE.get(slug, "/v1/tags")
    response = openapi["paths"][path]["post"]["responses"][str(PROBLEMS[slug].status)]

    content = response["content"]["application/problem+json"]
    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
    example = Problem.model_validate(content["examples"][slug]["value"])
    assert example.hint == PROBLEMS[slug].hint


def test_every_operation_declares_problems_only_as_problems(openapi: dict[str, Any]) -> None:
    operations = [operation for path in openapi["paths"].values() for operation in path.values()]

    failures = [
        response
        for operation in operations
        for status, response in operation["responses"].items()
        if int(status) >= 400
    ]
    assert failures
    assert all(list(response["content"]) == ["application/problem+json"] for response in failures)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_declared(openapi: dict[str, Any], status: int) -> None:
    assert "Retry-After" in openapi["paths"]["/v1/tags"]["post"]["responses"][str(status)]["headers"]


def test_an_unknown_slug_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        ProblemError("no-such-row")


def test_the_table_is_consistent() -> None:
    assert all(400 <= kind.status < 600 for kind in PROBLEMS.values())
    assert all(kind.title and kind.detail and kind.hint for kind in PROBLEMS.values())
