"""The command `music-tagger`: serve, tag files, train, evaluate.

Heavy imports stand in the commands, so that `--help` answers at once. Exit codes: 0 all is well, 1 some clip
failed, 2 the command cannot be carried out as it was typed.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)

from app import __version__
from app.output import Failed, Format, Outcome, Tagged, writer_of

if TYPE_CHECKING:
    from model.tagger import Tagger
    from model.training.corpus import Clip

cli = typer.Typer(
    name="music-tagger",
    help="Listens to music and scores independent tags.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


class TableFormat(StrEnum):
    """What `evaluate` writes to standard output."""

    TABLE = "table"
    JSON = "json"


Item = TypeVar("Item")

WIDE = 200
"""Columns of a table that goes into a file or a pipe, where nothing tells how wide it may be."""

Weights = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a bundle (tagger.json, tagger.safetensors); without it, the one that is shipped."
    ),
]
Device = Annotated[str, typer.Option(help="auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps.")]
ENGINE_HELP = "What computes the network: auto, torch, openvino, openvino-fp32."
THREADS_HELP = "Threads of the network on a CPU; without it, one a core, at most 8."
Engine = Annotated[str, typer.Option(help=ENGINE_HELP)]
Threads = Annotated[int | None, typer.Option(min=1, help=THREADS_HELP)]


def main() -> None:
    """Run the command line."""
    # A path may hold bytes that are no UTF-8; printed as it is, the next program in a pipe can still open it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    cli()


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"music-tagger {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Listens to music and scores independent tags."""


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port.", show_default="8000")] = None,
    weights: Weights = None,
    device: Annotated[
        str | None, typer.Option(help="auto (CUDA, then MPS, then CPU), cpu, cuda or mps.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    threads: Threads = None,
) -> None:
    """Serve over HTTP. What is not given comes from TAGGER_* in the environment (see app/settings.py)."""
    from pydantic import ValidationError

    from app.server import serve as run
    from app.settings import Settings

    given = {
        "host": host,
        "port": port,
        "weights": weights,
        "device": device,
        "engine": engine,
        "threads": threads,
    }
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        findings = [
            f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()
        ]
        _refuse("; ".join(findings))
    raise typer.Exit(run(settings))


@cli.command()
def tag(
    paths: Annotated[
        list[Path], typer.Argument(help="Files and folders; folders are walked, hidden files skipped.")
    ],
    form: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.TABLE,
    windows: Annotated[
        bool, typer.Option("--windows", help="Add the timeline: the scores of every window.")
    ] = False,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="From which score a tag is present: 0.5, or TAG:0.6,TAG:0.4.",
            show_default="the model's own",
        ),
    ] = None,
    start_s: Annotated[float, typer.Option(min=0, help="Skip so many seconds of each clip.")] = 0.0,
    duration_s: Annotated[float | None, typer.Option(help="Listen to so many seconds at most.")] = None,
    weights: Weights = None,
    device: Device = "auto",
    engine: Engine = "auto",
    threads: Threads = None,
) -> None:
    """Score files. A bad one is told on standard error and does not stop the rest."""
    if duration_s is not None and not duration_s > 0:
        _refuse("--duration-s must be more than 0 seconds")
    tagger = _load(weights, device, engine, threads)
    thresholds = _thresholds(threshold, tagger)
    files = [file for path in paths for file in _walk(path)]
    writer = writer_of(form, tagger.bundle.tags, windows=windows)
    failures = 0
    for path in _progress(files, "Tagging", hidden=form is Format.JSONL):
        outcome = _tag_file(tagger, path, thresholds, start_s=start_s, duration_s=duration_s)
        writer.add(outcome)
        if isinstance(outcome, Failed):
            failures += 1
            typer.echo(f"{outcome.path}: {outcome.detail} {outcome.hint}", err=True)
    writer.close()
    raise typer.Exit(1 if failures else 0)


@cli.command()
def train(
    manifest: Annotated[
        list[Path] | None,
        typer.Option(help="CSV with a row a clip: id, file, source, split, a column a tag; may be repeated."),
    ] = None,
    mtg_jamendo: Annotated[
        Path | None,
        typer.Option(
            help="Clone of the repository mtg-jamendo-dataset; its clips train whatever their train_ok says."
        ),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Folder of MTG-Jamendo's audio.", show_default="DIR/audio")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the run: caches, checkpoint, log, curves, and the bundle in bundle/."),
    ] = Path("runs/train"),
    tags: Annotated[
        str | None, typer.Option(help="The tags, as the manifest's columns: house,techno,ambient.")
    ] = None,
    meaning: Annotated[
        list[str] | None,
        typer.Option(
            help="TAG=TEXT: what a tag means, for those who read its score; may be repeated.",
            metavar="TAG=TEXT",
        ),
    ] = None,
    soft_labels: Annotated[
        Path | None, typer.Option(help="Scores of other taggers (npz) to distil from.")
    ] = None,
    teachers: Annotated[
        Path | None, typer.Option(help="Folder of the public taggers, to distil from.")
    ] = None,
    musicnn: Annotated[Path | None, typer.Option(help="Folder of the unpacked musicnn wheel.")] = None,
    warm_start: Annotated[
        bool | None,
        typer.Option("--warm-start/--no-warm-start", help="Start from musicnn's filters, or from scratch."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Folder of a bundle to go on from, or `shipped`: the one that comes with this."),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the --init weights in the result, against forgetting."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of log-mels and lessons, which runs may share; none: in --out."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Leave-sources-out cross-validation with so many folds, instead of a bundle."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="calibration.json of a cross-validation; none: fitted on the split val."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches to descend on.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Windows a batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the learning rate.")] = None,
    distillation: Annotated[
        float | None, typer.Option(min=0, help="Weight of the distillation loss.")
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps between two evaluations.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same batches.")] = None,
    train_ok_only: Annotated[
        bool | None,
        typer.Option("--train-ok-only/--all-rows", help="Leave out rows whose train_ok is not 1."),
    ] = None,
    version: Annotated[str | None, typer.Option("--bundle-version", help="Version of the bundle.")] = None,
    device: Device = "auto",
) -> None:
    """Train a tagger on labelled clips and write its bundle; a run that was stopped goes on where it was.

    What is not given is as TrainSettings says (model/training/train.py). Needs the extra `train`.
    """
    with _extra("train"):
        from model.bundle import BundleError
        from model.tagger import DeviceError
        from model.training.corpus import ManifestError
        from model.training.cross_validation import cross_validate
        from model.training.train import TrainingError, TrainSettings
        from model.training.train import train as run

    given = {
        "soft_labels": soft_labels,
        "teachers": teachers,
        "musicnn": musicnn,
        "warm_start": warm_start,
        "init": _bundle_of(init) if init is not None else None,
        "keep": keep,
        "cache": cache,
        "calibration": calibration,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "distillation": distillation,
        "evaluate_every": evaluate_every,
        "seed": seed,
        "train_ok_only": train_ok_only,
        "version": version,
        "tags": _tags(tags) if tags is not None else None,
    }
    manifests = list(manifest or ())
    if mtg_jamendo is not None:
        manifests.append(_from_mtg_jamendo(mtg_jamendo, audio, out / "mtg-jamendo.csv"))
        given["train_ok_only"] = bool(train_ok_only)
    if not manifests:
        _refuse("nothing to learn from: give --manifest CSV, or --mtg-jamendo DIR")
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = TrainSettings(manifests=tuple(manifests), out=out, device=device, **chosen)
    settings = replace(settings, meanings=_meanings(meaning or (), settings.tags))
    try:
        with _training_progress() as progress:
            result = cross_validate(settings, folds, progress) if folds else run(settings, progress)
    except (ManifestError, TrainingError, DeviceError, BundleError) as error:
        _refuse(str(error))
    typer.echo(f"{'Predictions' if folds else 'Bundle'}: {result}")


@cli.command("mtg-jamendo")
def mtg_jamendo(
    folder: Annotated[Path, typer.Argument(help="Clone of the repository mtg-jamendo-dataset.")],
    out: Annotated[Path, typer.Option(help="The manifest to write.")],
    audio: Annotated[
        Path | None, typer.Option(help="Folder of its audio.", show_default="FOLDER/audio")
    ] = None,
) -> None:
    """Write MTG-Jamendo's split 0 as a manifest (splits train, val, test). Needs the extra `train`."""
    typer.echo(f"Manifest: {_from_mtg_jamendo(folder, audio, out)}")


@cli.command()
def evaluate(
    manifest: Annotated[
        Path, typer.Option(help="CSV with a row a clip: id, file, source, split, a column a tag.")
    ],
    split: Annotated[
        str, typer.Option(help="Which rows, by their column `split`; all takes every row.")
    ] = "val",
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.md, its plots and scores.csv.")
    ] = None,
    generated: Annotated[
        list[str] | None,
        typer.Option(help="A source made by a music generator, reported apart; may be repeated."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="CSV with id and a column a tag: measure these scores instead of running the tagger,"
            " with the thresholds of its bundle."
        ),
    ] = None,
    rivals: Annotated[
        Path | None,
        typer.Option(
            help="Scores of public taggers (npz with ids, tags, scores): report them on the same clips."
        ),
    ] = None,
    robustness: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Report how the scores of so many clips, drawn at random, bear what happens on the way:"
            " codecs, rooms, noise, short excerpts.",
        ),
    ] = None,
    not_music: Annotated[
        Path | None,
        typer.Option(
            help="CSV with a row a clip that is no music (id, file, source): report its scores by source,"
            " and those of noise, tones and near-silence."
        ),
    ] = None,
    form: Annotated[TableFormat, typer.Option("--format", help="What to print.")] = TableFormat.TABLE,
    weights: Weights = None,
    device: Device = "auto",
    engine: Engine = "auto",
    threads: Threads = None,
) -> None:
    """Measure the tagger on labelled clips, with intervals by source. Needs the extra `train`."""
    with _extra("train"):
        from model.evaluation.not_music import not_music as sounds_of
        from model.evaluation.not_music import not_music_section, score_kinds
        from model.evaluation.report import (
            check_generated,
            measure,
            metrics_json,
            read_predictions,
            score_clips,
            terminal_table,
            write_report,
        )
        from model.evaluation.rivals import read_rivals, rivals_section
        from model.evaluation.robustness import draw_clips, robustness_section, score_distorted
    if report is None and (rivals or robustness or not_music):
        _refuse(
            "--rivals, --robustness and --not-music are told in the report: name its folder with --report"
        )
    tagger = _load(weights, device, engine, threads)
    tags = tagger.bundle.tags
    clips = _clips(manifest, split, tags)
    others = _clips(not_music, "all", ()) if not_music else []
    try:
        check_generated(clips, generated or ())
        opponents = read_rivals(rivals, clips) if rivals else None
        predicted = read_predictions(predictions, clips, tagger.bundle) if predictions else None
    except ValueError as error:
        _refuse(str(error))
    evaluation = predicted or score_clips(tagger, clips, lambda chosen: _progress(chosen, "Scoring"))
    for clip, message in evaluation.failures:
        typer.echo(f"{clip.path}: {message}", err=True)
    metrics = measure(evaluation)
    if form is TableFormat.JSON:
        typer.echo(metrics_json(metrics))
    else:
        title = f"{evaluation.title} on {len(evaluation.clips)} clips ({split})"
        Console(width=None if sys.stdout.isatty() else WIDE).print(terminal_table(metrics, title))
    if report is not None:
        sections = rivals_section(evaluation, opponents, _clips(manifest, "all", tags)) if opponents else []
        if robustness:
            drawn = draw_clips(clips, robustness)
            borne = score_distorted(tagger, drawn, lambda chosen: _progress(chosen, "Distorting"))
            sections += robustness_section(borne)
        if not_music:
            scores = score_kinds(tagger, _progress(sounds_of(others), "Scoring what is no music"))
            sections += not_music_section(tags, scores)
        typer.echo(f"Report: {write_report(evaluation, report, generated or (), sections)}", err=True)
    raise typer.Exit(1 if evaluation.failures else 0)


def _refuse(message: str) -> NoReturn:
    """End with exit code 2: the command cannot be carried out as it was typed."""
    typer.echo(f"music-tagger: {message}", err=True)
    raise typer.Exit(2)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        _refuse(f"{error.name} is not installed; run: pip install 'music-tagger[{name}]'")


def _load(weights: Path | None, device: str, engine: str, threads: int | None) -> "Tagger":
    from model.bundle import BundleError
    from model.engine import EngineError
    from model.tagger import DeviceError, Tagger

    try:
        return Tagger.load(weights, device, engine, threads)
    except (BundleError, DeviceError, EngineError) as error:
        _refuse(str(error))


def _thresholds(text: str | None, tagger: "Tagger") -> Mapping[str, float]:
    from app.problems import ProblemError
    from app.routes.tags import parse_thresholds

    try:
        return parse_thresholds(text, tagger.bundle)
    except ProblemError as error:
        _refuse(f"{error.detail} {error.hint}")


def _tags(text: str) -> tuple[str, ...]:
    from model.training.corpus import COLUMNS

    tags = tuple(name.strip() for name in text.split(",") if name.strip())
    if not tags or len(set(tags)) < len(tags):
        _refuse(f"--tags {text!r} must name at least one tag, and each once: --tags house,techno")
    if taken := [tag for tag in tags if tag in COLUMNS]:
        _refuse(f"{', '.join(taken)}: a column of every manifest; give the tag another name")
    return tags


def _bundle_of(init: str) -> Path:
    from model.bundle import SHIPPED

    return SHIPPED if init == "shipped" else Path(init)


def _meanings(given: Sequence[str], tags: Sequence[str]) -> dict[str, str]:
    """Read `TAG=TEXT` of each."""
    meanings = dict(text.split("=", 1) for text in given if "=" in text)
    if len(meanings) < len(given) or not set(meanings) <= set(tags):
        _refuse(f"--meaning takes TAG=TEXT, once a tag; the tags are {', '.join(tags)}")
    return meanings


def _from_mtg_jamendo(folder: Path, audio: Path | None, manifest: Path) -> Path:
    """Write the manifest, and tell what is in it."""
    from model.tags import TAGS
    from model.training.corpus import ManifestError, write_manifest
    from model.training.mtg_jamendo import read_mtg_jamendo

    audio = audio or folder / "audio"
    try:
        clips, missing = read_mtg_jamendo(folder, audio)
        write_manifest(manifest, clips, TAGS)
    except ManifestError as error:
        _refuse(str(error))
    typer.echo(f"MTG-Jamendo: {len(clips)} clips; {missing} left out, as {audio} lacks them", err=True)
    return manifest


def _walk(path: Path) -> list[Path]:
    """List the files below a folder in a stable order, without hidden ones; a file stands for itself."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        found += [file for file in files if file.is_file()]
    return found or [path]


def _progress(items: Sequence[Item], description: str, *, hidden: bool = False) -> Iterable[Item]:
    """Show on standard error how far the work is, where a person can see it and it has several items."""
    console = Console(stderr=True)
    silent = hidden or len(items) < 2 or not console.is_terminal
    return track(items, description, console=console, transient=True, disable=silent)


@contextmanager
def _training_progress() -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Show step, time left and figures on standard error; yields what is to be called every step."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("Training"), *columns, TextColumn("{task.fields[figures]}"), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("train", total=None, figures="preparing")

        def show(step: int, steps: int, figures: dict[str, float]) -> None:
            told = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
            bar.update(task, completed=step, total=steps, figures=told)

        yield show


def _tag_file(
    tagger: "Tagger", path: Path, thresholds: Mapping[str, float], *, start_s: float, duration_s: float | None
) -> Outcome:
    from app.problems import from_audio
    from model.audio import AudioError

    try:
        tagging = tagger.tag(path, start_s=start_s, duration_s=duration_s)
    except AudioError as error:
        problem = from_audio(error)
        return Failed(str(path), problem.slug, problem.detail, problem.hint)
    except OSError as error:
        return Failed(str(path), "unreadable", f"{error.strerror or error}.", _hint_for(path))
    present = tuple(name for name, score in tagging.scores.items() if score >= thresholds[name])
    return Tagged(str(path), tagging, present)


def _hint_for(path: Path) -> str:
    if path.is_dir():
        return "The folder holds no file to tag: name another one."
    return "Check the path, and that you may read the file."


def _clips(manifest: Path, split: str, tags: Sequence[str]) -> "list[Clip]":
    from model.training.corpus import ManifestError, read_manifest

    try:
        clips = read_manifest(manifest, tags)
    except ManifestError as error:
        _refuse(str(error))
    chosen = [clip for clip in clips if split in (clip.split, "all")]
    if not chosen:
        splits = ", ".join(sorted({clip.split for clip in clips}))
        _refuse(f"no row of {manifest} has the split {split!r}; choose one of: {splits}, all")
    return chosen


if __name__ == "__main__":
    main()
