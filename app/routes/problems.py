"""GET /problems: what each problem's `type` leads to."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.problems import PROBLEMS, ProblemError, problem_of, responses_for
from app.schemas import Problem

router = APIRouter(tags=["problems"])


@router.get(
    "/problems",
    summary="List all problems",
    response_description="An example of each.",
    responses=responses_for(key=False),
)
async def list_problems() -> list[Problem]:
    """Every failure that this service can answer, each with an example."""
    return [_example(slug) for slug in PROBLEMS]


@router.get(
    "/problems/{slug}",
    summary="Describe a problem",
    response_description="An example of it.",
    responses=responses_for("not-found", "bad-parameter", key=False),
)
async def describe_problem(
    slug: Annotated[str, Path(description="The last part of the problem's `type`.", examples=["too-short"])],
) -> Problem:
    """One failure, with an example and what to do about it."""
    if slug not in PROBLEMS:
        raise ProblemError("not-found", "There is no such problem.", hint="See /problems for all of them.")
    return _example(slug)


def _example(slug: str) -> Problem:
    kind = PROBLEMS[slug]
    return problem_of(slug, kind.detail, kind.hint, f"/problems/{slug}")
