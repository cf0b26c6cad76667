"""Leave-sources-out cross-validation: every clip scored by a network that never met its source.

The clips of the first manifest are dealt to folds by source. For each fold a network is trained on all that
shares no source with it, for a fixed number of steps: nothing of the fold chooses anything. What the networks
say of their folds tells how good the tagger is on sources it never met, and calibrates it.

One calibration is fitted to all folds. One a fold, fitted to the others, would share nothing with its clips,
but shift the folds' scores against each other: that cost dance 0.03 of ROC-AUC.
"""

import csv
import json
import logging
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle import load_bundle, save_bundle
from model.tagger import choose_device, score
from model.training.calibration import calibrate, pool_clips
from model.training.checks import (
    TrainingError,
    check_learnt,
    check_run,
    check_settings,
    classes,
    differences,
    may_train,
    run_of,
    sources_of,
    warn_of_init,
    warn_of_one_class,
)
from model.training.corpus import SEPARATOR, Clip, read_manifest
from model.training.material import Material
from model.training.train import Progress, TrainSettings, bundle_of, clip_logits, fit, prepare, usable

logger = logging.getLogger(__name__)


BUNDLE: Final = "bundle"
OF_CLIPS: Final = {"clips", "sound"}
"""In what a fold may differ from a former one, and is trained anew."""


class Said(NamedTuple):
    """What a network says of a clip: logits of its windows [W, K], and what each counts [W]."""

    logits: NDArray[np.float64]
    weights: NDArray[np.float64]


Fold = dict[str, Said]
"""By clip."""


def cross_validate(settings: TrainSettings, folds: int, progress: Progress = lambda *_: None) -> Path:
    """Train a network a fold, and write what they say: `predictions.csv` and `calibration.json`.

    A fold that is there is kept, and one that was stopped goes on from its last checkpoint. Where `init` is a
    former cross-validation's folder, each fold's network goes on from that fold's former one: as a bundle
    grows in steps, so do the networks that calibrate it.

    Returns:
        The path of `predictions.csv`: `id`, `fold`, and a calibrated score a tag.

    Raises:
        TrainingError: there are fewer sources than folds, a tag has only yes or only no, a fold has nothing
            to learn from or goes on from a network that met what it judges, or `settings.out` holds another
            run; and what `train` raises.
    """
    _check_former(settings, folds)
    rows = read_manifest(settings.manifests[0], settings.tags)
    _check(settings, folds, check_settings(replace(settings, init=_start(settings, 0))), rows)
    if not _goes_on(settings):
        warn_of_init(settings, rows, "of the first manifest")
    shared = settings.cache or settings.out / "cache"
    material = prepare(replace(settings, cache=shared))
    judged = prepare(replace(settings, cache=shared, manifests=settings.manifests[:1], teachers=None))
    _check(settings, folds, material.clips, judged.clips)  # again: what cannot be read is left out
    fold_of = deal(judged.clips, folds)
    if _goes_on(settings):
        _check_starts(settings, fold_of)
    said: list[Fold] = []
    for fold in range(folds):
        own = replace(
            settings,
            out=_folder(settings.out, fold),
            init=_start(settings, fold),
            cache=shared,
            keep_last=True,
        )
        sources = {source for source, number in fold_of.items() if number == fold}
        said.append(_fold(own, material, judged, sources, progress))
    return _write(settings, judged, said)


def _folder(run: Path, fold: int) -> Path:
    """Of a fold: its checkpoint, log and curves, what its network said, and the network, as a bundle."""
    return run / f"fold-{fold}"


def _goes_on(settings: TrainSettings) -> bool:
    """Whether each fold goes on from its own network of a former cross-validation."""
    return settings.init is not None and _folder(settings.init, 0).is_dir()


def _start(settings: TrainSettings, fold: int) -> Path | None:
    """The bundle that a fold goes on from, if any: its own, or one for all."""
    if settings.init is None or not _goes_on(settings):
        return settings.init
    return _folder(settings.init, fold) / BUNDLE


def _check_former(settings: TrainSettings, folds: int) -> None:
    """Check that a former cross-validation has as many folds, and their bundles, before hours are spent."""
    if settings.init is None or not _goes_on(settings):
        return
    former = len([folder for folder in settings.init.glob("fold-*") if folder.is_dir()])
    if former != folds:
        raise TrainingError(f"--folds {folds}: {settings.init} has {former}; choose as many to go on from it")
    for fold in range(folds):
        load_bundle(_folder(settings.init, fold) / BUNDLE)


def _check_starts(settings: TrainSettings, fold_of: dict[str, int]) -> None:
    """Check that no fold goes on from a network that met what it judges."""
    for fold in set(fold_of.values()):
        start = _start(settings, fold)
        judges = {source for source, number in fold_of.items() if number == fold}
        if start is not None and (known := sorted(_parts(judges) & sources_of(start))):
            raise TrainingError(
                f"--init: {start} met {known[0]}, which this fold is to judge; give the first manifest of"
                " that cross-validation"
            )


def _check(settings: TrainSettings, folds: int, clips: Sequence[Clip], judged: Sequence[Clip]) -> None:
    """Check that every fold can be trained, before hours are spent."""
    sources = {clip.source for clip in judged}
    if len(sources) < 2:
        raise TrainingError(
            f"{settings.manifests[0]} needs clips, which can be read, of two sources or more; there are"
            f" {len(sources)}"
        )
    if not 2 <= folds <= len(sources):
        raise TrainingError(
            f"--folds {folds}: choose 2 to {len(sources)}, which is how many sources there are"
        )
    for column, tag in enumerate(settings.tags):
        if len(classes(judged, column)) < 2:
            raise TrainingError(f"{settings.manifests[0]} needs clips with and without {tag!r}")
    fold_of = deal(judged, folds)
    for fold in range(folds):
        touched = shares_source(clips, {source for source, number in fold_of.items() if number == fold})
        own = [
            clip for clip, met in zip(clips, touched, strict=True) if not met and may_train(settings, clip)
        ]
        check_learnt(settings, own)


def deal(clips: Sequence[Clip], folds: int) -> dict[str, int]:
    """Sources to folds: the largest first, each to the fold that has the fewest clips so far."""
    sizes = Counter(clip.source for clip in clips)
    filled = [0] * folds
    fold_of = {}
    for source, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold_of[source] = int(np.argmin(filled))
        filled[fold_of[source]] += size
    return fold_of


def _parts(sources: set[str]) -> set[str]:
    return {part for source in sources for part in source.split(SEPARATOR)}


def shares_source(clips: Sequence[Clip], sources: set[str]) -> NDArray[np.bool_]:
    """[N]: whether a clip has a source among these, or a part of one: a mix has those of all in it."""
    parts = _parts(sources)
    return np.array([not parts.isdisjoint(clip.sources) for clip in clips], np.bool_)


def shares_file(clips: Sequence[Clip], judged: Sequence[Clip]) -> NDArray[np.bool_]:
    """[N]: whether a clip's sound is that of one of these, under another source."""
    files = {clip.path.resolve() for clip in judged}
    return np.array([clip.path.resolve() in files for clip in clips], np.bool_)


def _fold(
    settings: TrainSettings, material: Material, judged: Material, sources: set[str], progress: Progress
) -> Fold:
    path = settings.out / "logits.npz"
    held_out = judged.select(np.array([clip.source in sources for clip in judged.clips]))
    ids = [clip.id for clip in held_out.clips]
    met = shares_source(material.clips, sources) | shares_file(material.clips, held_out.clips)
    learn = material.select(~met & usable(material, settings))
    run = run_of(settings, learn.clips, held_out.clips)
    if (kept := _kept(path, run)) is not None:
        return kept
    checkpoint = settings.out / "checkpoint.pt"
    if path.exists() or _is_of_other_clips(checkpoint, run):  # rows, sources or labels have changed since
        logger.warning("%s is of other clips or labels: this fold is trained anew", settings.out)
        for former in (path, checkpoint, settings.out / "log.csv"):
            former.unlink(missing_ok=True)
    warn_of_one_class(settings, learn.clips)
    device = choose_device(settings.device)
    network = fit(settings, learn, held_out, device, progress)
    said = [Said(*found) for found in zip(*clip_logits(network, held_out, device), strict=True)]
    save_bundle(settings.out / BUNDLE, bundle_of(network, learn, settings), network.cpu())
    _keep(path, run, ids, said)
    return dict(zip(ids, said, strict=True))


def _is_of_other_clips(checkpoint: Path, run: dict[str, Any]) -> bool:
    """Whether a fold was stopped that differs in its clips only; what cannot be read, `fit` refuses."""
    try:
        saved = json.loads(torch.load(checkpoint, map_location="cpu", weights_only=True)["run"])
        return bool(differences(saved, run)) and differences(saved, run) <= OF_CLIPS
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, pickle.UnpicklingError):
        return False


def _keep(path: Path, run: dict[str, Any], ids: Sequence[str], said: Sequence[Said]) -> None:
    """Write `ids` [N], logits [W, K] and weights [W] one after another, and where each clip's begin [N]."""
    partial = path.with_suffix(".part")
    with partial.open("wb") as handle:
        np.savez(
            handle,
            allow_pickle=False,
            run=np.array(json.dumps(run)),
            ids=np.array(ids, np.str_),
            offsets=np.cumsum([0, *(len(clip.weights) for clip in said)])[:-1],
            logits=np.concatenate([clip.logits for clip in said]),
            weights=np.concatenate([clip.weights for clip in said]),
        )
    partial.rename(path)


def _kept(path: Path, run: dict[str, Any]) -> Fold | None:
    """What `_keep` wrote; none where there is nothing that can be read, or it is of other clips.

    Raises TrainingError where it is of other settings.
    """
    try:
        with path.open("rb") as handle, np.load(handle) as archive:
            former, ids, offsets = (archive[name] for name in ("run", "ids", "offsets"))
            logits, weights = (np.split(archive[name], offsets[1:]) for name in ("logits", "weights"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    changed = differences(json.loads(str(former) or "{}"), run)
    if not changed <= OF_CLIPS:
        check_run(path, str(former), run)
    if changed:
        return None
    return dict(zip(map(str, ids), map(Said, logits, weights), strict=True))


def _write(settings: TrainSettings, judged: Material, said: Sequence[Fold]) -> Path:
    labels = {clip.id: row for clip, row in zip(judged.clips, judged.labels, strict=True)}
    rows: dict[str, dict[str, str]] = {
        clip: {"id": clip, "fold": str(number)} for number, fold in enumerate(said) for clip in fold
    }
    heard = {clip: found for fold in said for clip, found in fold.items()}
    weights = [found.weights for found in heard.values()]
    fitted = {}
    for column, tag in enumerate(settings.tags):
        windows = [found.logits[:, column] for found in heard.values()]
        truth = np.array([labels[clip][column] for clip in heard])
        calibration, threshold = calibrate(windows, truth, tag, weights)
        scores = score(pool_clips(windows, calibration.pooling, weights), calibration)
        for clip, found in zip(heard, scores, strict=True):
            rows[clip][tag] = f"{found:.6f}"
        fitted[tag] = asdict(calibration) | {"threshold": threshold}
    (settings.out / "calibration.json").write_text(json.dumps(fitted, indent=2) + "\n", encoding="utf-8")
    path = settings.out / "predictions.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ("id", "fold", *settings.tags))
        writer.writeheader()
        writer.writerows(rows.values())
    return path
