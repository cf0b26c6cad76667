"""The training loop, from a manifest to a bundle: read it from top to bottom.

Every step draws a batch (`Sampler`), distorts it, and descends on masked binary cross-entropy plus
distillation. A moving average of the weights is what is evaluated, on sources never trained on, and the best
of those by mean ROC-AUC is what is kept.
"""

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.bundle import Bundle, save_bundle
from model.evaluation.metrics import plain, roc_auc, tag_metrics
from model.network import SEGMENT_SAMPLES, SEGMENTS_PER_WINDOW, MusicalBranch, NetworkConfig, TaggerNetwork
from model.tagger import choose_device, cut_segments, pool_logits, score, window_means
from model.tags import MEANINGS, TAGS
from model.training import cache, warm_start
from model.training.augmentation import mask_bands_and_frames
from model.training.calibration import calibrate
from model.training.corpus import read_manifest
from model.training.curves import plot_curves
from model.training.losses import masked_bce, masked_mse
from model.training.material import Material, Sampler, load_material
from model.training.teachers import Teachers, load_teach

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (step, steps, figures) after every step."""


class TrainingError(ValueError):
    """Training that cannot start; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything that a run depends on."""

    manifests: tuple[Path, ...]
    """Manifests of clips (see `corpus`): rows of split `train` train, those of `val` choose and calibrate."""
    out: Path
    """Folder of the run: caches, checkpoint, log, curves, and the bundle in `bundle/`."""
    tags: tuple[str, ...] = TAGS
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What a tag means, as the service tells it; a tag that is not named has the shipped meaning, or none."""
    soft_labels: Path | None = None
    """Scores of other taggers for whole clips (npz with `ids`, `scores`), to distil from."""
    teachers: Path | None = None
    """Folder of the public taggers: they then score every second of every clip, which takes a while, once."""
    musicnn: Path | None = None
    """Folder of the unpacked musicnn wheel: a teacher, and where the musical branch starts from."""
    warm_start: bool = True
    steps: int = 3000
    batch: int = 32
    learning_rate: float = 2e-3
    warm_learning_rate: float = 3e-4
    """Of the musical branch, where it starts warm."""
    weight_decay: float = 0.02
    distillation: float = 1.0
    """Weight of the distillation loss beside the tags' binary cross-entropy."""
    average: float = 0.998
    """Decay of the moving average of the weights, a step; less in a run of fewer than 3000 (see `_decay`)."""
    evaluate_every: int = 500
    seed: int = 1
    device: str = "auto"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    version: str = "0.1.0"
    train_ok_only: bool = True
    """Leave out rows whose `train_ok` is not 1, as weights that are given away must."""


@dataclass
class Student:
    """The network with its distillation head, which is dropped after training."""

    network: TaggerNetwork
    distiller: nn.Linear

    def losses(
        self, audio: Tensor, labels: Tensor, soft: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Audio [B, 160000], labels [B, K], soft targets [B, M] -> (loss on the tags, distillation loss)."""
        network = self.network
        with torch.no_grad():
            mel = mask_bands_and_frames(network.log_mel(audio.reshape(-1, SEGMENT_SAMPLES)), rng)
        with torch.autocast(audio.device.type, torch.bfloat16):
            embeddings = network.embed_mel(mel).reshape(len(audio), SEGMENTS_PER_WINDOW, -1).mean(1)
        features = network.head.features(embeddings)
        logits = network.head.out(network.head.dropout(features))
        return masked_bce(logits, labels), masked_mse(self.distiller(features), soft)

    def train_mode(self) -> None:
        """Batch norms and dropout as in training, but for frozen filters: they stay as they are."""
        self.network.train()
        for module in self.network.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()

    def parameters(self, settings: TrainSettings) -> list[dict[str, Any]]:
        """Groups for the optimiser: biases and norms do not decay, the warm branch learns slowly."""
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        modules = {"network": self.network, "distiller": self.distiller}
        for owner, module in modules.items():
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                warm = (
                    settings.warm_start
                    and settings.musicnn is not None
                    and f"{owner}.{name}".startswith("network.branches.0.")
                )
                groups.setdefault((warm, parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": settings.warm_learning_rate if warm else settings.learning_rate,
                "weight_decay": settings.weight_decay if matrix else 0.0,
            }
            for (warm, matrix), parameters in groups.items()
        ]


def train(settings: TrainSettings, progress: Progress = lambda *_: None) -> Path:
    """Train, calibrate and write a bundle. Resumes from the checkpoint in `settings.out` if one is there.

    Returns:
        The folder of the bundle.

    Raises:
        ManifestError: a manifest cannot be used.
        TrainingError: there is nothing to train on or to validate with, or the settings contradict each
        other.
        DeviceError: there is no such device.
    """
    torch.manual_seed(settings.seed)
    device = choose_device(settings.device)
    material = prepare(settings)
    val = np.array([clip.split == "val" for clip in material.clips])
    learn = material.select(usable(material, settings))
    held_out = material.select(val & ~np.isnan(material.labels).all(1))
    _check(settings, learn, held_out)
    student = Student(new_network(settings), nn.Linear(settings.network.hidden, learn.soft.shape[2]))
    student.network.to(device)
    student.distiller.to(device)
    best = descend(student, learn, held_out, settings, device, progress)
    student.network.load_state_dict(best)
    return write_bundle(student.network.eval(), held_out, material, settings, device)


def prepare(settings: TrainSettings) -> Material:
    """Caches for every manifest, then all of them as one material."""
    teachers = None
    if settings.teachers is not None and settings.musicnn is not None:
        teachers = Teachers(settings.teachers, settings.musicnn)
    sources = []
    for manifest in settings.manifests:
        folder = settings.out / "cache" / f"{manifest.resolve().parent.name}-{manifest.stem}"
        cache.build(manifest, folder, settings.tags, teachers)
        sources.append((read_manifest(manifest, settings.tags), folder))
    return load_material(sources, settings.soft_labels)


def usable(material: Material, settings: TrainSettings) -> NDArray[np.bool_]:
    """[N]: whether a clip may train; those of any split but `train` never do."""
    return np.array(
        [clip.split == "train" and (clip.train_ok or not settings.train_ok_only) for clip in material.clips]
    )


def _check(settings: TrainSettings, learn: Material, held_out: Material) -> None:
    if not len(learn.clips) or np.isnan(learn.labels).all():
        raise TrainingError(
            "no clip to train on: the manifests need rows of split `train` with a label (and train_ok 1)"
        )
    if not len(held_out.clips):
        raise TrainingError(
            "no clip to validate with: give some rows, of sources of their own, the split `val`"
        )
    shared = {clip.source for clip in learn.clips} & {clip.source for clip in held_out.clips}
    for tag, column in zip(settings.tags, held_out.labels.T, strict=True):
        if not {0.0, 1.0} <= set(column[~np.isnan(column)].tolist()):
            raise TrainingError(
                f"the split `val` needs clips with and without {tag!r}; sources on both sides: {len(shared)}"
            )


def new_network(settings: TrainSettings) -> TaggerNetwork:
    """A network with random weights; given musicnn, its musical branch warm and the filters frozen."""
    if not (settings.warm_start and settings.teachers and settings.musicnn and settings.network.musical):
        return TaggerNetwork(settings.tags, settings.network)
    weights = warm_start.read_musicnn(settings.musicnn, load_teach(settings.teachers).read_checkpoint)
    network = TaggerNetwork(settings.tags, warm_start.config_of(weights, settings.network))
    branch = cast("MusicalBranch", network.branches[0])
    warm_start.load_musical_branch(branch, network.mel_norm, weights)
    for frozen in (network.mel_norm, branch.filters):
        frozen.requires_grad_(requires_grad=False)
    return network


def balance(material: Material) -> NDArray[np.float64]:
    """[N], how often to draw a clip: large sources less than their size, rare positives more."""
    sources = [clip.source for clip in material.clips]
    sizes = {source: sources.count(source) for source in set(sources)}
    weights = np.array([sizes[source] ** -0.3 for source in sources])
    positives = np.nansum(material.labels == 1.0, 0)
    negatives = np.nansum(material.labels == 0.0, 0)
    rarity = np.clip(negatives / np.maximum(positives, 1) / 2, 0.0, 2.0)
    boosted: NDArray[np.float64] = weights * (1.0 + ((material.labels == 1.0) * rarity).sum(1))
    return boosted


def descend(
    student: Student,
    learn: Material,
    held_out: Material,
    settings: TrainSettings,
    device: torch.device,
    progress: Progress,
) -> dict[str, Tensor]:
    """The loop. Returns the averaged weights of the best evaluation."""
    network = student.network
    vocal = settings.tags.index("vocal") if "vocal" in settings.tags else None
    sampler = Sampler(learn, balance(learn), settings.batch, settings.seed, vocal)
    optimiser = torch.optim.AdamW(student.parameters(settings), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings.steps))
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(_decay(settings)), use_buffers=True
    )
    state = {
        "network": network,
        "distiller": student.distiller,
        "average": average,
        "optimiser": optimiser,
        "schedule": schedule,
    }
    checkpoint = settings.out / "checkpoint.pt"
    first, best_auc, best = _resume(checkpoint, state)
    log = Log(
        settings.out / "log.csv",
        ["step", "seconds", "loss", "distillation", *(f"auc_{tag}" for tag in settings.tags), "auc"],
    )
    began, losses, distillations = time.monotonic(), [], []
    for step in range(first, settings.steps):
        student.train_mode()
        torch.manual_seed(settings.seed * 1_000_003 + step)
        audio, labels, soft = (torch.from_numpy(array).to(device) for array in sampler(step))
        loss, distillation = student.losses(
            audio, labels, soft, np.random.default_rng((settings.seed, step, 1))
        )
        optimiser.zero_grad()
        (loss + settings.distillation * distillation).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        losses.append(loss.item())
        distillations.append(distillation.item())
        progress(step + 1, settings.steps, {"loss": float(np.mean(losses[-50:])), "best ROC-AUC": best_auc})
        if (step + 1) % settings.evaluate_every and step + 1 != settings.steps:
            continue
        averaged = cast("TaggerNetwork", average.module.eval())
        aucs = clip_aucs(averaged, held_out, device)
        row = [
            step + 1,
            round(time.monotonic() - began),
            np.mean(losses),
            np.mean(distillations),
            *aucs,
            np.mean(aucs),
        ]
        log.add(row)
        plot_curves(log.path, settings.out / "curves.png")
        losses, distillations = [], []
        if np.mean(aucs) > best_auc:
            best_auc, best = (
                float(np.mean(aucs)),
                {name: value.clone() for name, value in averaged.state_dict().items()},
            )
        _save(checkpoint, state, step + 1, best_auc, best)
    return best


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: linear over the first 3%, then a cosine to 1%."""
    warm_up = max(1, int(0.03 * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _decay(settings: TrainSettings) -> float:
    """Of the weights' average: a short run must forget its random start, so a sixth of it is averaged."""
    return min(settings.average, max(0.0, 1 - 6 / settings.steps))


def _save(path: Path, state: dict[str, Any], step: int, best_auc: float, best: dict[str, Tensor]) -> None:
    partial = path.with_suffix(".part")
    values = {name: part.state_dict() for name, part in state.items()}
    torch.save({"step": step, "best_auc": best_auc, "best": best, **values}, partial)
    partial.rename(path)


def _resume(path: Path, state: dict[str, Any]) -> tuple[int, float, dict[str, Tensor]]:
    if not path.exists():
        return 0, 0.0, {}
    saved = torch.load(path, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["step"], saved["best_auc"], saved["best"]


class Log:
    """A CSV that grows a row an evaluation, and survives a resumed run."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        if not path.exists():
            self._write("w", columns)

    def add(self, row: Sequence[Any]) -> None:
        """Append one row, floats to five places."""
        self._write("a", [f"{value:.5f}" if isinstance(value, float) else value for value in row])

    def _write(self, mode: str, row: Sequence[Any]) -> None:
        with self.path.open(mode, newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerow(row)


@torch.inference_mode()
def clip_logits(
    network: TaggerNetwork, material: Material, device: torch.device
) -> list[NDArray[np.float64]]:
    """Logits of the windows of every clip, as the tagger cuts them: N arrays [windows, K]."""
    logits = []
    for index in range(len(material.clips)):
        segments = np.stack(list(cut_segments([material.samples(index)])))
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):  # as the tagger does
            embeddings = network.embed(torch.from_numpy(segments).to(device)).float().cpu().numpy()
        windows = torch.from_numpy(window_means(embeddings)).to(device)
        logits.append(network.classify(windows).cpu().numpy().astype(np.float64))
    return logits


def clip_aucs(network: TaggerNetwork, material: Material, device: torch.device) -> list[float]:
    """ROC-AUC a tag of the mean logits of whole clips."""
    means = np.stack([windows.mean(0) for windows in clip_logits(network, material, device)])
    known = ~np.isnan(material.labels)
    return [roc_auc(material.labels[k, i], means[k, i]) for i, k in enumerate(known.T)]


def write_bundle(
    network: TaggerNetwork,
    held_out: Material,
    material: Material,
    settings: TrainSettings,
    device: torch.device,
) -> Path:
    """Calibrate and measure on the held-out clips, and write the bundle."""
    logits = clip_logits(network, held_out, device)
    sources = [clip.source for clip in held_out.clips]
    calibration, thresholds, metrics = {}, {}, {}
    for tag, column, labels in zip(
        settings.tags, zip(*[z.T for z in logits], strict=True), held_out.labels.T, strict=True
    ):
        calibration[tag], thresholds[tag] = calibrate(column, labels)
        pooled = np.array([pool_logits(z, calibration[tag].pooling) for z in column])
        scores = score(pooled, calibration[tag])
        metrics[tag] = plain(tag_metrics(tag, labels, scores, sources, thresholds[tag]))
    bundle = Bundle(
        name="music-tagger",
        version=settings.version,
        tags=settings.tags,
        thresholds=thresholds,
        network=network.config,
        calibration=calibration,
        meanings={tag: {**MEANINGS, **settings.meanings}.get(tag, "") for tag in settings.tags},
        metrics=metrics,
        training_data=_sources(material, settings),
    )
    folder = settings.out / "bundle"
    save_bundle(folder, bundle, network.cpu())
    return folder


def _sources(material: Material, settings: TrainSettings) -> list[dict[str, Any]]:
    """What trained the network: clips a source, the largest first."""
    used = [clip.source for clip in material.select(usable(material, settings)).clips]
    return [
        {"source": source, "clips": used.count(source)}
        for source in sorted(set(used), key=lambda s: (-used.count(s), s))
    ]
