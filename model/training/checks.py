"""Whether a training can start, and is the one that was stopped: checked before hours are spent."""

import hashlib
import json
import logging
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model.bundle import load_bundle
from model.tagger import choose_device
from model.training.corpus import SEPARATOR, Clip, read_manifest
from model.training.material import read_soft_labels
from model.training.separation import checkpoint_of
from model.training.teachers import MODELS, TeacherFolders, word_lists
from model.training.words import WORDS

if TYPE_CHECKING:
    from model.training.train import TrainSettings

logger = logging.getLogger(__name__)

SEEDS: Final = 2**32
"""How many seeds there are: of each and a step, one is made that PyTorch takes."""
SOUND: Final = "sound"
"""The key of `run_of` for the sound of the clips, by the names and sizes of their files."""
FREE: Final = (
    "manifests",  # `run_of` tells clips by their rows
    "out",
    "meanings",
    "cache",
    "calibration",
    "evaluate_every",
    "device",
    "version",
)
"""Settings that may change before a run that was stopped goes on."""
FOLDERS: Final = ("soft_labels", "teachers", "musicnn", "spleeter")
"""Settings of which only matters whether there are any."""


class TrainingError(ValueError):
    """Training that cannot start or go on; the message says what to do."""


def check_settings(settings: "TrainSettings") -> list[Clip]:
    """Check all but the clips' labels, and give the clips of all manifests.

    Raises:
        TrainingError: a number is out of range, settings contradict each other, or the teachers are missing.
        ManifestError: a manifest or the soft labels cannot be used.
        DeviceError: there is no such device.
        BundleError: the bundle to go on from cannot be used.
    """
    if not 0 <= settings.seed < SEEDS:
        raise TrainingError(f"--seed {settings.seed}: choose 0 to {SEEDS - 1}")
    if not 0.0 < settings.learning_rate < math.inf:
        raise TrainingError(f"--learning-rate {settings.learning_rate}: choose more than 0, 0.002 say")
    if not math.isfinite(settings.distillation):
        raise TrainingError(f"--distillation {settings.distillation}: choose 0 or more, 1 say")
    if not 0.0 <= settings.keep <= 1.0:
        raise TrainingError(f"--keep {settings.keep}: choose 0 to 1")
    if len({path.resolve() for path in settings.manifests}) < len(settings.manifests):
        raise TrainingError("a --manifest is given twice: its clips would count twice; give each once")
    if settings.soft_labels is not None and settings.teachers is not None:
        raise TrainingError("--soft-labels and --teachers both teach: give one of them")
    if settings.keep and settings.init is None:
        raise TrainingError("--keep is a share of the bundle that --init names: give --init, too, or neither")
    if (settings.teachers is None) != (settings.musicnn is None):
        raise TrainingError("--teachers and --musicnn teach together: give both, or neither")
    if settings.spleeter is not None and settings.teachers is None:
        raise TrainingError("--spleeter teaches beside --teachers and --musicnn: give these, too")
    if settings.teacher_folders is not None:
        _check_teachers(settings.teacher_folders)
    choose_device(settings.device)
    if settings.init is not None:
        trained, _ = load_bundle(settings.init)
        if settings.keep and trained.tags != settings.tags:
            raise TrainingError(
                "--keep needs the tags of the bundle that --init names: of others it has no weights"
            )
    clips = [clip for manifest in settings.manifests for clip in read_manifest(manifest, settings.tags)]
    if settings.soft_labels is not None and not {clip.id for clip in clips} & set(
        read_soft_labels(settings.soft_labels)[0]
    ):
        raise TrainingError(
            f"{settings.soft_labels}: none of its ids is a clip's; write the ids as the manifest does"
        )
    return clips


def _check_teachers(folders: TeacherFolders) -> None:
    teachers, musicnn, spleeter = folders
    try:
        word_lists(teachers)
    except (OSError, ImportError, AttributeError, KeyError, SyntaxError) as error:
        raise TrainingError(
            f"--teachers {teachers}: cannot be used ({error}); give the folder of the public taggers, which"
            " holds teach.py and yamnet_class_map.csv, and install what that imports"
        ) from error
    if not (musicnn / "musicnn").is_dir():
        raise TrainingError(
            f"--musicnn {musicnn}: holds no folder `musicnn`; give that of the unpacked wheel"
        )
    for name in MODELS:
        if not (teachers / name).is_file():
            raise TrainingError(
                f"--teachers {teachers}: holds no {name}; give the folder of the public taggers"
            )
    if spleeter is not None:
        try:
            checkpoint_of(spleeter)
        except FileNotFoundError as error:
            raise TrainingError(f"--spleeter {error}") from error


def may_train(settings: "TrainSettings", clip: Clip) -> bool:
    """Whether a clip may train, by its licence."""
    return clip.train_ok or not settings.train_ok_only


def check_clips(settings: "TrainSettings", clips: Sequence[Clip]) -> None:
    """Check that the splits `train` and `val` can train and choose.

    Raises:
        TrainingError: a split is empty, or a tag is unknown in `train` or not told apart in `val`.
    """
    learn = [clip for clip in clips if clip.split == "train" and may_train(settings, clip)]
    held_out = [clip for clip in clips if clip.split == "val" and set(clip.labels) != {None}]
    _check_any(learn)
    if not held_out:
        raise TrainingError(
            "no clip to validate with: give some rows, of sources of their own, the split `val`"
        )
    for column, tag in enumerate(settings.tags):
        if len(classes(held_out, column)) < 2:
            raise TrainingError(f"the split `val` needs clips with and without {tag!r}")
    check_learnt(settings, learn)


def _check_any(learn: Iterable[Clip]) -> None:
    if all(label is None for clip in learn for label in clip.labels):
        raise TrainingError(
            "no clip to train on: the manifests need rows of split `train` with a label (and train_ok 1)"
        )


def check_learnt(settings: "TrainSettings", learn: Sequence[Clip]) -> None:
    """Check that there is something to learn of each tag from these clips.

    Raises:
        TrainingError: there is none.
    """
    _check_any(learn)
    for column, tag in enumerate(settings.tags):
        if not classes(learn, column) and not _has_words(settings, tag):
            raise TrainingError(
                f"no clip that trains has a label of {tag!r}: write 1 or 0 for some of them, or leave the tag"
                " out of --tags"
            )


def warn_of_one_class(settings: "TrainSettings", learn: Sequence[Clip]) -> None:
    """Tell of tags that these clips teach only the yes or only the no of."""
    for column, tag in enumerate(settings.tags):
        found = classes(learn, column)
        if len(found) == 1 and not _has_words(settings, tag):
            logger.warning(
                "all clips that train %s %s, so the network cannot learn it: add some that %s",
                *(("have", tag, "have not") if True in found else ("lack", tag, "have it")),
            )


def warn_of_clips(settings: "TrainSettings", clips: Sequence[Clip]) -> None:
    """Tell of what is allowed in a manifest and seldom meant, before hours are spent."""
    learn = [clip for clip in clips if clip.split == "train" and may_train(settings, clip)]
    warn_of_one_class(settings, learn)
    for split in ("val", "test"):
        held_out = [clip for clip in clips if clip.split == split]
        warn_of_shared_sources(learn, held_out, split)
        warn_of_init(settings, held_out, f"of the split `{split}`")


def warn_of_shared_sources(learn: Sequence[Clip], held_out: Sequence[Clip], split: str) -> None:
    """Tell of sources, parts of mixes, or files that are on both sides."""
    shared = {f"source {source}" for source in _parts(learn) & _parts(held_out)}
    shared |= {f"file {path}" for path in _files(learn) & _files(held_out)}
    if shared:
        logger.warning(
            "%d sources or files are in `train` and in `%s`, so the tagger will look better than it is: %s",
            len(shared),
            split,
            ", ".join(sorted(shared)[:5]),
        )


def warn_of_init(settings: "TrainSettings", judges: Iterable[Clip], which: str) -> None:
    """Tell of sources of the clips that judge which the bundle to go on from learned from."""
    if settings.init is None:
        return
    if known := sources_of(settings.init) & _parts(judges):
        logger.warning(
            "%d sources %s trained the bundle of --init, so the tagger will look better than it is: %s",
            len(known),
            which,
            ", ".join(sorted(known)[:5]),
        )


def sources_of(bundle: Path) -> set[str]:
    """What trained a bundle: sources, and the parts of mixes.

    Raises BundleError where it cannot be used.
    """
    rows = load_bundle(bundle)[0].training_data
    return {part for row in rows for part in unicodedata.normalize("NFC", row["source"]).split(SEPARATOR)}


def _files(clips: Iterable[Clip]) -> set[Path]:
    return {clip.path.resolve() for clip in clips}


def _parts(clips: Iterable[Clip]) -> set[str]:
    return {part for clip in clips for part in clip.sources}


def classes(clips: Iterable[Clip], column: int) -> set[bool]:
    """Which of yes and no there is of a tag; a soft label is a yes from 0.5 on."""
    return {label >= 0.5 for clip in clips if (label := clip.labels[column]) is not None}


def _has_words(settings: "TrainSettings", tag: str) -> bool:
    return settings.words and settings.teachers is not None and tag in WORDS


def run_of(
    settings: "TrainSettings", learn: Iterable[Clip] = (), held_out: Iterable[Clip] = ()
) -> dict[str, Any]:
    """What a run that was stopped must have in common with that which goes on; the device need not be."""
    parts = [list(clips) for clips in (learn, held_out)]
    rows = repr([[(clip.id, clip.source, clip.labels) for clip in clips] for clips in parts])
    files = repr([[(clip.path.name, _size_of(clip.path)) for clip in clips] for clips in parts])
    run = {part.name: getattr(settings, part.name) for part in fields(settings) if part.name not in FREE}
    run |= {name: run[name] is not None for name in FOLDERS} | {
        "init": load_bundle(settings.init)[0].sha256 if settings.init else None,
        "clips": hashlib.sha256(rows.encode()).hexdigest(),
        SOUND: hashlib.sha256(files.encode(errors="surrogateescape")).hexdigest(),
    }
    return dict(json.loads(json.dumps(run, default=asdict)))


def _size_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def differences(former: Mapping[str, Any], run: Mapping[str, Any]) -> set[str]:
    """In what a run differs from a former one, by `run_of` both; versions that did not tell `sound` may."""
    return {
        name for name, value in run.items() if former.get(name, value if name == SOUND else None) != value
    }


def check_run(path: Path, saved: str, run: Mapping[str, Any]) -> None:
    """Check that what was saved is of this run.

    Args:
        path: where it was saved.
        saved: `run_of` that run, as JSON; empty: by a version that did not tell.
        run: `run_of` this one.

    Raises:
        TrainingError: it is of another.
    """
    former = json.loads(saved or "{}")
    differing = [name.replace("_", " ") for name in run if name in differences(former, run)]
    if differing:
        raise TrainingError(
            f"{path} is of another run; name another --out, or remove it to start anew"
            f" (different: {', '.join(differing)})"
        )
