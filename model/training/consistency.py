"""The head's last layers, taught to say of a window heard badly or briefly what they say of it as it is.

No label is asked: the network teaches itself (Sajjadi et al. 2016, `Regularization With Stochastic
Transformations and Perturbations for Deep Semi-Supervised Learning`). All before those layers stays as
it is, so the best change is a ridge regression, in closed form.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.frontend import HOP, SAMPLE_RATE_HZ
from model.network import SEGMENT_S, SEGMENTS_PER_WINDOW, Head, TaggerNetwork
from model.tagger import window_means
from model.training.augmentation import (
    FLAT_DB,
    Generator,
    blend,
    draw_band,
    draw_response,
    mel_centres_hz,
    response_db,
)
from model.training.cache import VARIANTS
from model.training.embedding import Embed, embedder
from model.training.material import Material, Mel, cut_mel, fill_segment
from model.training.radial import STILL

Floats = NDArray[np.float64]

MOST_CLIPS: Final = 3000
"""More are drawn from at random: the layers have some two thousand inputs, and a clip a dozen windows."""
CLIPS_AT_ONCE: Final = 64
"""Whose windows are held, some 2,000, until their products are summed."""
PARTS_S: Final = (1, 1, 3, 5)
"""Seconds of the parts of a clip that are heard alone, each somewhere."""
COMES_AND_GOES: Final = ("vocal",)
"""Tags that a part does not share with what is around it: a second without a voice lies in many a song. With
parts, the vocal ROC-AUC on human clips of `val` was 0.846, not 0.860."""
CLEAN: Final = 3.0
"""What a window as it is counts, whose logits are to stay, beside 1 of each other."""
NO_MUSIC: Final = ("noise", "speech", "sounds", "field")
"""Sources (see `gather`) that count so many times as much: without them, a third of speech became vocal."""
NO_MUSIC_COUNTS: Final = 3.0
RIDGE: Final = 0.01
"""Share of the penalty, of inputs that vary by 1, in the sum of what all windows count."""


@dataclass(frozen=True, slots=True)
class JudgedWindows:
    """Windows [B, E], what to say of them [B, K], NaN unknown, and what each counts."""

    windows: NDArray[np.float32]
    logits: Floats
    count: float


@torch.no_grad()
def fit_consistency(network: TaggerNetwork, material: Material, seed: int) -> None:
    """Change the head's linear layers, in place.

    Args:
        network: in evaluation mode.
        material: clips to hear as they are, distorted, in a telephone's band, equalised, and in parts.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(material.clips))[:MOST_CLIPS])
    embed = embedder(network, network.head.out.weight.device, len(chosen))
    ridge = HeadRidge(network)
    for first in range(0, len(chosen), CLIPS_AT_ONCE):
        some = chosen[first : first + CLIPS_AT_ONCE]
        ridge.add([part for index in some for part in hear(network, embed, material, int(index), rng)])
    ridge.teach()


class HeadRidge:
    """What a network's linear layers are to add to what they say: a ridge regression for each tag.

    Of all windows only sums of products are kept: with those of 3,000 clips, training took over 20 GB.
    """

    def __init__(self, network: TaggerNetwork) -> None:
        self._network = network
        self._products: dict[tuple[bool, ...], Floats] = {}
        """By which tags are known: weighted sums of products of [inputs F, what is missing K, 1]."""

    @torch.no_grad()
    def add(self, heard: Sequence[JudgedWindows]) -> None:
        """Windows, and what the network is to say of them."""
        network = self._network
        counts = np.concatenate([np.full(len(part.windows), part.count) for part in heard])
        asked = np.concatenate([part.logits for part in heard])
        windows = _beside(network, np.concatenate([part.windows for part in heard]))
        missing = asked - network.classify(windows).cpu().numpy()
        rows = np.column_stack(
            [torch.cat(inputs_of(network.head, windows), 1).cpu(), missing, np.ones(len(counts))]
        )
        known = ~np.isnan(missing)
        for pattern in np.unique(known, axis=0):
            alike = (known == pattern).all(1)
            products = weighted_products(np.nan_to_num(rows[alike]), counts[alike])
            self._products[tuple(pattern)] = products + self._products.get(tuple(pattern), 0.0)

    @torch.no_grad()
    def teach(self) -> None:
        """Change the head's linear layers, in place."""
        for tag in range(len(self._network.tags)):
            products = np.sum([part for known, part in self._products.items() if known[tag]], 0)
            inputs = len(products) - len(self._network.tags) - 1
            chosen = [*range(inputs), inputs + tag, -1]
            change, shift = weighted_ridge(
                products[np.ix_(chosen, chosen)], scales_of(self._network.head, tag)
            )
            _add(self._network.head, tag, change, shift)


def hear(
    network: TaggerNetwork, embed: Embed, material: Material, index: int, rng: Generator
) -> Iterator[JudgedWindows]:
    """A clip as it is, as its distorted variants, a telephone and an equaliser have it, and in parts."""
    mel = material.mel(index)
    source = material.clips[index].sources[0]
    times = NO_MUSIC_COUNTS if source in NO_MUSIC else 1.0
    responses = ((FLAT_DB, draw_band(rng)), draw_response(rng))
    distorted = [material.mel(index, variant) for variant in range(1, VARIANTS)]
    distorted += [_equalise(mel, response_db(mel_centres_hz(), *response)) for response in responses]
    wholes = [cut_mel(whole) for whole in (mel, *distorted)]
    parts = list(_parts_of(mel, rng))
    segments = [*wholes, *(part for part, _, _ in parts)]
    # All in one call, so that no core waits.
    embeddings = np.split(embed(np.concatenate(segments)), np.cumsum([len(cut) for cut in segments])[:-1])
    windows, *others = (window_means(of_whole) for of_whole in embeddings[: len(wholes)])
    logits = network.classify(_beside(network, windows)).cpu().double().numpy()
    yield JudgedWindows(windows, logits, CLEAN * times)
    for other in others:
        yield JudgedWindows(other, logits, times)
    for (_, start_s, seconds), embedding in zip(parts, embeddings[len(wholes) :], strict=True):
        asked = logits[_windows_around(start_s, seconds, len(logits))].mean(0, keepdims=True)
        asked[:, [tag in COMES_AND_GOES for tag in network.tags]] = np.nan
        yield JudgedWindows(embedding, asked, times)


def _parts_of(mel: Mel, rng: Generator) -> Iterator[tuple[Mel, float, int]]:
    """Parts of a clip, of those that are shorter than it: a segment [1, 96, T], where it begins, seconds."""
    for seconds in PARTS_S:
        length = seconds * SAMPLE_RATE_HZ // HOP
        if length < mel.shape[1]:
            start = int(rng.integers(mel.shape[1] - length))
            part = fill_segment(mel[:, start : start + length])[None]
            yield part, start * HOP / SAMPLE_RATE_HZ, seconds


def inputs_of(head: Head, windows: Tensor) -> list[Tensor]:
    """Windows [B, E] -> what the head's linear layers get: `out`, `straight` and the radial basis."""
    learnt = windows[:, head.frozen_size :]
    radial = [head.radial.features(windows[:, : head.frozen_size])] if head.radial else []
    return [head.logits_and_features(learnt)[1], head.norm(learnt), *radial]


def scales_of(head: Head, tag: int) -> Floats:
    """By what each of `inputs_of` is multiplied on its way to a tag's logit, [F]."""
    learnt = head.out.in_features + head.straight.in_features
    if head.radial is None:
        return np.ones(learnt)
    beside = float(head.radial.beside[tag])
    return np.concatenate([np.full(learnt, beside), np.ones(head.radial.out.in_features)])


def weighted_products(rows: Floats, counts: Floats) -> Floats:
    """[N, F], what each row counts [N] -> sums of products [F, F]."""
    products: Floats = rows.T @ (rows * counts[:, None])
    return products


def weighted_ridge(products: Floats, scales: Floats) -> tuple[Floats, float]:
    """Weights [F] and a bias that add to inputs, each multiplied by its scale [F], what is missing.

    Args:
        products: weighted sums of products of [inputs, what is missing, 1], [F + 2, F + 2].
        scales: [F].
    """
    factors = np.concatenate([scales, [1.0, 1.0]])
    scaled = products * np.outer(factors, factors) / products[-1, -1]
    mean = scaled[-1, :-1]
    covariance = scaled[:-1, :-1] - np.outer(mean, mean)
    deviation = np.sqrt(covariance.diagonal()[:-1].clip(0.0)) + STILL
    standard = covariance[:-1, :-1] / np.outer(deviation, deviation)
    penalty = RIDGE * np.eye(len(scales))
    weights = np.linalg.solve(standard + penalty, covariance[:-1, -1] / deviation) / deviation
    return weights, float(mean[-1] - mean[:-1] @ weights)


def _add(head: Head, tag: int, change: Floats, shift: float) -> None:
    layers = [head.out, head.straight, *([head.radial.out] if head.radial else [])]
    sizes = np.cumsum([layer.in_features for layer in layers])[:-1]
    for layer, part in zip(layers, np.split(change, sizes), strict=True):
        layer.weight[tag] += torch.from_numpy(part).to(layer.weight)
    last = head.radial.out if head.radial else head.out
    last.bias[tag] += shift


def _beside(network: TaggerNetwork, windows: NDArray[np.float32]) -> Tensor:
    """Where the head is."""
    return torch.from_numpy(windows).to(network.head.out.weight.device)


def _equalise(mel: Mel, curve_db: Floats) -> Mel:
    """[96, frames] with a gain by band [96]."""
    whole = torch.from_numpy(mel.astype(np.float32))[None, None]
    curve = torch.from_numpy(curve_db.astype(np.float32))[None]
    changed = blend(whole, torch.zeros_like(whole), torch.zeros(1), curve)
    equalised: Mel = changed[0, 0].numpy().astype(np.float16)
    return equalised


def _windows_around(start_s: float, length_s: float, windows: int) -> slice:
    """Which windows hold all of a part, or most of it."""
    last = min(int(start_s / SEGMENT_S), windows - 1)
    first = max(0, int(np.ceil((start_s + length_s) / SEGMENT_S)) - SEGMENTS_PER_WINDOW)
    return slice(min(first, last), last + 1)
