"""The head's radial basis functions, in closed form: what musicnn's convolutions say of each tag.

musicnn has heard a million commercial songs, so what is near in its embedding sounds alike also where this
training has no examples. On sources left out they follow the teachers' words better than the rest of the
network does, which learns from few sources (ROC-AUC of dance 0.944 and 0.908; rank correlation on human clips
of pop 0.91 and 0.86). So beside them the rest of the head counts little where the words are trusted.
"""

from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import Ridge
from torch import Tensor

from model.network import SEGMENT_S, SEGMENTS_PER_WINDOW, RadialBasis, TaggerNetwork
from model.tagger import window_means
from model.training.embedding import embedder
from model.training.losses import mix_targets
from model.training.material import Material, cut_mel
from model.training.words import opinion_scale, trust_in_words

HEARD_VARIANTS: Final = (0, 1)
"""Each clip is heard as it is and once distorted (see `cache`)."""
RIDGE: Final = 1e-4
"""A clip's share of the penalty, as `sklearn.linear_model.Ridge` counts it."""
LINE: Final = 0.15
"""The straight line is fitted to an input so much smaller, so that it leaves the most to the Gaussians."""
LABEL: Final = 1.0
"""A label counts as words that are so many standard deviations from their mean."""
NO_MUSIC_SOURCES: Final = ("noise", "field")
"""See `gather`."""
NO_MUSIC_LABEL: Final = 2.0
"""What a label of these counts as instead: nothing else pulls these sounds down."""
SPEECH_SOURCE: Final = "speech"
SPEECH_LEAVES_OPEN: Final = "vocal"
"""A tag of which speech says nothing here, as it is near song: the rest of the network tells them apart. Else
the vocal ROC-AUC was 0.01 lower on human clips of sources left out."""
STILL: Final = 1e-3
"""Added to the deviation of each dimension of the embedding, for those that do not vary."""
CENTRES_OF: Final = 2
"""Centres are sought among every so-manieth window."""


@torch.no_grad()
def fit_radial(network: TaggerNetwork, material: Material, seed: int) -> None:
    """Fit `head.radial` to the labels and to what the teachers' words say, in place.

    Args:
        network: whose frozen convolutions are those of musicnn.
        material: clips to learn from.
        seed: of the centres.
    """
    radial = cast("RadialBasis", network.head.radial)
    device = radial.width.device
    trust = trust_in_words(network.tags).astype(np.float64)
    heard = frozen_windows(network, material, device)
    said = [targets_of_windows(material, index, len(windows), trust) for index, windows in heard]
    for (index, _), targets in zip(heard, said, strict=True):
        if material.clips[index].source == SPEECH_SOURCE:
            targets[:, [tag == SPEECH_LEAVES_OPEN for tag in network.tags]] = np.nan
    x = torch.from_numpy(np.concatenate([windows for _, windows in heard]))
    _place(radial.cpu(), x, seed)
    features = radial.features(x).cpu().double().numpy()
    features[:, len(radial.centres) :] *= LINE
    scales, shifts = opinion_scale(network.tags).tolist()
    for row, target in enumerate(np.concatenate(said).T):
        known = ~np.isnan(target)
        if not known.any():
            continue
        fitted = Ridge(RIDGE * known.sum()).fit(features[known], target[known])
        radial.out.weight[row] = torch.from_numpy(scales[row] * fitted.coef_)
        radial.out.bias[row] = scales[row] * fitted.intercept_ + shifts[row]
    radial.out.weight[:, len(radial.centres) :] *= LINE
    radial.beside.copy_(torch.from_numpy(beside(trust)))
    radial.to(device)


def beside(trust: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much the head's other logits count, [K]: little where words are most of each target, else twice.

    Among 0 to 5 times, these are within 0.002 of the best ROC-AUC on sources left out, but for pop (0.007).
    """
    least = trust.min(0)
    return np.where(least > 0.5, 1 - least, 2.0)


def frozen_windows(
    network: TaggerNetwork, material: Material, device: torch.device
) -> list[tuple[int, NDArray[np.float32]]]:
    """What the frozen convolutions find in the windows: a clip, [windows, E], for each clip and variant."""
    embed = embedder(network, device, len(material.clips))
    heard = []
    for index in range(len(material.clips)):
        mels = np.concatenate([cut_mel(material.mel(index, variant)) for variant in HEARD_VARIANTS])
        segments = embed(mels)[:, : network.head.frozen_size]
        heard += [(index, window_means(part)) for part in np.split(segments, len(HEARD_VARIANTS))]
    return heard


def targets_of_windows(
    material: Material, index: int, windows: int, trust: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[windows, K]: what labels and words say of each, in standard deviations of the words, NaN unknown.

    Words make up `trust` [2, K] of what both say (see `mix_targets`).
    """
    length = int(SEGMENTS_PER_WINDOW * SEGMENT_S)
    by_second = material.words[index].astype(np.float64)
    starts = [min(int(number * SEGMENT_S), len(by_second) - length) for number in range(windows)]
    words = np.stack([_mean_of_known_rows(by_second[start : start + length]) for start in starts])
    is_no_music = material.clips[index].sources[0] in NO_MUSIC_SOURCES
    strength = NO_MUSIC_LABEL if is_no_music else LABEL
    labels = material.labels[index].astype(np.float64)
    arrays = np.tile(strength * (2 * labels - 1), (windows, 1)), words, trust, labels >= 0.5
    mixed: NDArray[np.float64] = mix_targets(*map(torch.from_numpy, arrays)).numpy()
    return mixed


def _mean_of_known_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(rows)
    total = np.where(known, rows, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), total, np.nan)


def _place(radial: RadialBasis, x: Tensor, seed: int) -> None:
    """Scale the embedding, put centres among its windows, and make the Gaussians as wide as it is."""
    radial.mean.copy_(x.mean(0))
    radial.deviation.copy_(x.std(0) + STILL)
    radial.width.fill_(x.shape[1] ** 0.5)
    standard = ((x - radial.mean) / radial.deviation).numpy()
    number = len(radial.centres)
    if len(standard) < CENTRES_OF * number:
        chosen = np.random.default_rng(seed).integers(len(standard), size=number)
        radial.centres.copy_(torch.from_numpy(standard[chosen]))
        return
    centres = MiniBatchKMeans(number, random_state=seed, n_init=1, batch_size=2048)
    radial.centres.copy_(torch.from_numpy(centres.fit(standard[::CENTRES_OF]).cluster_centers_))
