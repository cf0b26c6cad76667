"""Leave-sources-out cross-validation: every clip scored by a network that never met its source.

The clips of the first manifest are dealt to folds by source. For each fold a network is trained on all that
shares no source with it, for a fixed number of steps: nothing of the fold chooses anything. What the networks
say of their folds tells how good the tagger is on sources it never met, and calibrates it.

One calibration is fitted to all folds. One a fold, fitted to the others, would share nothing with its clips,
but shift the folds' scores against each other: that cost dance 0.03 of ROC-AUC.
"""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.tagger import choose_device, pool_logits, score
from model.training.calibration import calibrate
from model.training.corpus import SOURCES, Clip, read_manifest
from model.training.material import Material
from model.training.train import Progress, TrainingError, TrainSettings, clip_logits, fit, prepare, usable

Logits = dict[str, NDArray[np.float64]]
"""By clip: logits of its windows [windows, K]."""


def cross_validate(settings: TrainSettings, folds: int, progress: Progress = lambda *_: None) -> Path:
    """Train a network a fold, and write what they say: `predictions.csv` and `calibration.json`.

    A fold that is there is kept, and one that was stopped goes on from its last checkpoint.

    Returns:
        The path of `predictions.csv`: `id`, `fold`, and a calibrated score a tag.

    Raises:
        TrainingError: there are fewer sources than folds, or a tag has only yes or only no; and what `train`
            raises.
    """
    _check(settings, read_manifest(settings.manifests[0], settings.tags), folds)  # before hours are spent
    shared = settings.cache or settings.out / "cache"
    material = prepare(replace(settings, cache=shared))
    judged = prepare(replace(settings, cache=shared, manifests=settings.manifests[:1], teachers=None))
    fold_of = deal(judged.clips, folds)
    said: list[Logits] = []
    for fold in range(folds):
        own = replace(settings, out=settings.out / f"fold-{fold}", cache=shared, keep_last=True)
        sources = {source for source, number in fold_of.items() if number == fold}
        said.append(_fold(own, material, judged, sources, progress))
    return _write(settings, judged, said)


def _check(settings: TrainSettings, clips: Sequence[Clip], folds: int) -> None:
    sources = {clip.source for clip in clips}
    if not 2 <= folds <= len(sources):
        raise TrainingError(
            f"--folds {folds}: choose 2 to {len(sources)}, which is how many sources there are"
        )
    for column, tag in enumerate(settings.tags):
        if not {0.0, 1.0} <= {clip.labels[column] for clip in clips}:
            raise TrainingError(f"{settings.manifests[0]} needs clips with and without {tag!r}")


def deal(clips: Sequence[Clip], folds: int) -> dict[str, int]:
    """Sources to folds: the largest first, each to the fold that has the fewest clips so far."""
    sizes = Counter(clip.source for clip in clips)
    filled = [0] * folds
    fold_of = {}
    for source, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold_of[source] = int(np.argmin(filled))
        filled[fold_of[source]] += size
    return fold_of


def shares_source(clips: Sequence[Clip], sources: set[str]) -> NDArray[np.bool_]:
    """[N]: whether a clip has a source among these, or a part of one: a mix has those of all in it."""
    parts = {part for source in sources for part in source.split(SOURCES)}
    return np.array([not parts.isdisjoint(clip.source.split(SOURCES)) for clip in clips], np.bool_)


def _fold(
    settings: TrainSettings, material: Material, judged: Material, sources: set[str], progress: Progress
) -> Logits:
    path = settings.out / "logits.npz"
    if not path.exists():
        touched = shares_source(material.clips, sources)
        held_out = judged.select(np.array([clip.source in sources for clip in judged.clips]))
        learn = material.select(~touched & usable(material, settings))
        device = choose_device(settings.device)
        network = fit(settings, learn, held_out, device, progress)
        logits = clip_logits(network, held_out, device)
        by_clip = {clip.id: z for clip, z in zip(held_out.clips, logits, strict=True)}
        np.savez(path, allow_pickle=False, **by_clip)
    with np.load(path) as archive:
        return dict(archive)


def _write(settings: TrainSettings, judged: Material, said: Sequence[Logits]) -> Path:
    labels = {clip.id: row for clip, row in zip(judged.clips, judged.labels, strict=True)}
    rows: dict[str, dict[str, str]] = {
        clip: {"id": clip, "fold": str(fold)} for fold, logits in enumerate(said) for clip in logits
    }
    heard = {clip: z for logits in said for clip, z in logits.items()}
    fitted = {}
    for column, tag in enumerate(settings.tags):
        windows = [z[:, column] for z in heard.values()]
        truth = np.array([labels[clip][column] for clip in heard])
        calibration, threshold = calibrate(windows, truth, tag)
        for clip, z in zip(heard, windows, strict=True):
            pooled = np.array(pool_logits(z, calibration.pooling))
            rows[clip][tag] = f"{float(score(pooled, calibration)):.6f}"
        fitted[tag] = asdict(calibration) | {"threshold": threshold}
    (settings.out / "calibration.json").write_text(json.dumps(fitted, indent=2) + "\n", encoding="utf-8")
    path = settings.out / "predictions.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ("id", "fold", *settings.tags))
        writer.writeheader()
        writer.writerows(rows.values())
    return path
