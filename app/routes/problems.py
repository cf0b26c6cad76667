"""GET /problems: what each problem's `type` leads to."""

from fastapi import APIRouter

from app.problems import PROBLEMS, ProblemError, problem_of, responses_for
from app.schemas import Problem

router = APIRouter(tags=["problems"])


@router.get("/problems", summary="List all problems", responses=responses_for(key=False))
async def list_problems() -> list[Problem]:
    """Every failure that this service can answer, each with an example."""
    return [_example(slug) for slug in PROBLEMS]


@router.get(
    "/problems/{slug}",
    summary="Describe a problem",
    responses=responses_for("not-found", "bad-parameter", key=False),
)
async def describe_problem(slug: str) -> Problem:
    """One failure, with an example and what to do about it."""
    if slug not in PROBLEMS:
        raise ProblemError("not-found", "There is no such problem.", hint="See /problems for all of them.")
    return _example(slug)


def _example(slug: str) -> Problem:
    kind = PROBLEMS[slug]
    return problem_of(slug, kind.detail, kind.hint, f"/problems/{slug}")
