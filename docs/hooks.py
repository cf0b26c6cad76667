"""MkDocs hooks: what the site tells of the code and the model is made of them, at every build.

`<!-- generated: NAME -->` in a page is replaced by what the function for NAME in `GENERATED` writes.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from annotated_types import Ge, Gt, Le, Lt
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from app import redoc
from app.main import create_app
from app.openapi import TAGS
from app.problems import PROBLEMS
from app.settings import Settings
from model.tagger import Tagger

ROOT: Final = Path(__file__).parents[1]
CLIPS: Final[Mapping[str, str]] = {
    "app/web/samples/song.opus": "a (synthetic) voice sings pop",
    "app/web/samples/club.opus": "trance, no voice",
    "app/web/samples/orchestra.opus": "a slow, dark orchestral theme",
    "tests/clips/sung_pop.opus": "a (synthetic) voice sings a verse and a hook over a band",
    "tests/clips/club_track.opus": "techno, no voice",
    "tests/clips/orchestral_cue.opus": "orchestral battle music of a game",
    "tests/clips/speech.opus": "a woman speaks, no music",
}
BOUNDS: Final = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}


@cache
def tagger() -> Tagger:
    """The shipped model."""
    return Tagger.load(device="cpu")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table in Markdown."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def tags() -> str:
    """Each tag's meaning and threshold, as the bundle tells them."""
    bundle = tagger().bundle
    rows = [(f"**{tag}**", bundle.meanings[tag], f"{bundle.thresholds[tag]:.2f}") for tag in bundle.tags]
    return table(("tag", "applies when", "threshold"), rows)


def clips() -> str:
    """Each clip to be heard, with its scores; those that reach the threshold are bold."""
    bundle = tagger().bundle
    rows = []
    for path, heard in CLIPS.items():
        scores = tagger().tag(ROOT / path).scores
        cells = [
            f"**{score:.2f}**" if score >= bundle.thresholds[tag] else f"{score:.2f}"
            for tag, score in scores.items()
        ]
        name = Path(path).name
        shape = 'controls preload="none" style="width: 11rem"'
        player = f'<audio {shape} src="clips/{name}" aria-label="{name}"></audio>'
        rows.append((f"{heard}<br>{player}", *cells))
    return table(("clip", *bundle.tags), rows)


def model() -> str:
    """Name the model that the site was built with."""
    bundle = tagger().bundle
    return f"{bundle.name} {bundle.version} (`{bundle.sha256[:12]}…`)"


def problems() -> str:
    """Every row of the service's table of problems."""
    rows = [
        (str(kind.status), f"`/problems/{slug}`", kind.title, kind.detail, kind.hint)
        for slug, kind in sorted(PROBLEMS.items(), key=lambda item: item[1].status)
    ]
    return table(("status", "type", "title", "for example", "hint"), rows)


def operations() -> str:
    """Every operation, in the order of the tags."""
    paths = create_app(Settings(), tagger=tagger()).openapi()["paths"]
    order = [tag["name"] for tag in TAGS]
    found = [
        (operation["tags"][0], method.upper(), path, operation["summary"])
        for path, items in paths.items()
        for method, operation in items.items()
    ]
    found.sort(key=lambda row: order.index(row[0]))
    return table(("operation", "does"), [(f"`{method} {path}`", does) for _, method, path, does in found])


def settings() -> str:
    """Every setting: what to write in the environment, and what follows from it."""
    sections = []
    for name, field in Settings.model_fields.items():
        facts = [_type(name, field), f"default {_default(field)}", *_bounds(field)]
        told = " ".join((field.description or "").split())
        sections.append(f"### `TAGGER_{name.upper()}`\n\n*{', '.join(facts)}*\n\n{told}\n")
    return "\n".join(sections)


def _type(name: str, field: FieldInfo) -> str:
    if name.endswith("_file"):
        return "file"
    kind = field.annotation
    if isinstance(kind, type) and kind in (str, int, float):
        return {str: "text", int: "whole number", float: "number"}[kind]
    return {"int | None": "whole number", "pathlib.Path | None": "folder"}.get(str(kind), "list, by commas")


def _default(field: FieldInfo) -> str:
    if field.default_factory:
        return "as told below"
    return "empty" if field.default in (None, ()) else f"`{field.default}`"


def _bounds(field: FieldInfo) -> list[str]:
    found = [
        f"{sign} {getattr(item, name):g}"
        for item in field.metadata
        for kind, (sign, name) in BOUNDS.items()
        if isinstance(item, kind)
    ]
    patterns = [item.pattern for item in field.metadata if getattr(item, "pattern", None)]
    return found + [f"matches `{pattern}`" for pattern in patterns]


GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    made.__name__: made for made in (tags, clips, model, problems, operations, settings)
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies elsewhere, or nowhere: the clips, the model card, and the API's reference."""
    for path in CLIPS:
        files.append(File.generated(config, f"clips/{Path(path).name}", abs_src_path=str(ROOT / path)))
    card = (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    card = re.sub(r"\]\((?!https?:|#)", "](../", card)  # as its links would be written here
    files.append(File.generated(config, "MODEL_CARD.md", content=card))
    openapi = json.dumps(create_app(Settings(), tagger=tagger()).openapi())
    files.append(File.generated(config, "openapi.json", content=openapi))
    # A page that is read from the disk can load a script, and no JSON.
    shown = f'Redoc.init({openapi}, {{}}, document.getElementById("reference"));'
    files.append(File.generated(config, "openapi.js", content=shown))
    files.append(File.generated(config, "redoc.standalone.js", content=redoc.script()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put what is generated into a page, and leave only the words of links to what the site does not hold.

    Raises KeyError, which ends the build, at an unknown name.
    """
    del page
    markdown = markdown.replace("](../MODEL_CARD.md", "](MODEL_CARD.md")
    markdown = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)
    return re.sub(r"<!-- generated: (\w+) -->", lambda found: GENERATED[found[1]](), markdown)
