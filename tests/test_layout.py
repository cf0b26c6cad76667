"""Imports run one way, read from the code itself: see the layout in the README."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "model", "music_tagger_client")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# From the bottom to the top: a module of the tagger may import those on its own or a lower floor.
FLOORS = [
    {"model.tags", "model.audio", "model.segments", "model.limits"},
    {"model.frontend"},
    {"model.network"},
    {"model.bundle", "model.engine", "model.unfolding"},
    {"model.tagger"},
    {"model.training", "model.evaluation"},
]
WEB = {"fastapi", "starlette", "uvicorn", "httpx", "typer", "app"}
NETWORKS = {"torch", "torchaudio", "safetensors"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in a file, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def is_part_of(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def floor_of(module: str) -> int | None:
    floors = [floor for floor, names in enumerate(FLOORS) if any(is_part_of(module, name) for name in names)]
    return floors[0] if floors else None


def test_there_is_code_to_read() -> None:
    assert {"app.cli", "model.tagger", "music_tagger_client.client"} <= {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("model")], ids=name_of)
def test_the_tagger_knows_nothing_of_http(path: Path) -> None:
    assert packages(path) & WEB == set()


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("app")], ids=name_of)
def test_the_service_knows_nothing_of_tensors(path: Path) -> None:
    assert packages(path) & NETWORKS == set()


@pytest.mark.parametrize(
    "path", [path for path in MODULES if floor_of(name_of(path)) is not None], ids=name_of
)
def test_the_tagger_is_built_from_the_bottom_up(path: Path) -> None:
    floor = floor_of(name_of(path))

    above = [module for module in imports(path) if (floor_of(module) or 0) > (floor or 0)]

    assert above == []


def test_every_module_of_the_tagger_has_its_floor() -> None:
    modules = [name_of(path) for path in MODULES if name_of(path).startswith("model.")]

    assert [module for module in modules if floor_of(module) is None] == []


@pytest.mark.parametrize(
    "path", [path for path in MODULES if name_of(path).startswith("music_tagger_client")], ids=name_of
)
def test_the_client_needs_little_else_and_nothing_of_the_service(path: Path) -> None:
    light = {"music_tagger_client", "anyio", "httpx", "pydantic", "tenacity"}

    assert packages(path) - sys.stdlib_module_names <= light


def test_audio_stands_alone() -> None:
    assert [name for name in imports(ROOT / "model" / "audio.py") if is_part_of(name, "model")] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_training_and_evaluation_need_what_only_they_install(path: Path) -> None:
    needed = packages(path) & {"sklearn", "scipy", "matplotlib"}

    assert not needed or name_of(path).startswith(("model.training.", "model.evaluation."))
