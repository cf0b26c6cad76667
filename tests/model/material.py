"""What the tests of training learn from: two sounds, clips of them, and a small network."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.network import NetworkConfig, RadialBasis, TaggerNetwork
from model.training.augmentation import Samples
from model.training.cache import CLIP_FRAMES, CLIP_S, variants
from model.training.corpus import Clip
from model.training.material import Material

RATE = 16_000
UNKNOWN = np.nan


def beat(seconds: float, rng: np.random.Generator) -> Samples:
    """A kick drum four to the floor."""
    time = np.arange(int(seconds * RATE)) / RATE
    since = time % (60 / rng.uniform(120, 130))
    return (0.8 * np.sin(2 * np.pi * 60 * since) * np.exp(-since * 20)).astype(np.float32)


def drone(seconds: float, rng: np.random.Generator) -> Samples:
    """A steady tone with overtones."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = rng.uniform(100, 400)
    overtones = np.arange(1, 4)[:, None]
    samples: NDArray[np.float64] = (0.2 / overtones * np.sin(2 * np.pi * overtones * pitch * time)).sum(0)
    return samples.astype(np.float32)


def material_of(labels: NDArray[np.float32], words: NDArray[np.float16], seconds: float = 12.0) -> Material:
    """A clip a row of `labels` [N, 2], a beat where the first is 1, else a drone; `words` [N, 29, 2]."""
    rng = np.random.default_rng(0)
    mels = np.stack(
        [
            variants(str(index), (beat if row[0] == 1.0 else drone)(seconds, rng))
            for index, row in enumerate(labels)
        ]
    )
    clips = [Clip(str(i), Path(), "train", True, str(i), (None,), ("",)) for i in range(len(labels))]
    places = np.array([(0, index) for index in range(len(labels))])
    frames = np.full(len(labels), min(CLIP_FRAMES, 1 + int(seconds * 16_000) // 256))
    soft = np.full((len(labels), CLIP_S, 1), UNKNOWN, np.float16)
    return Material(clips, [mels], places, frames, labels, words, soft)


def network_of(tags: tuple[str, ...], centres: int = 8) -> TaggerNetwork:
    torch.manual_seed(0)
    config = NetworkConfig(
        timbral=((38, 7, 4),), temporal=((32, 4),), mid=4, texture=(), hidden=8, centres=centres
    )
    return TaggerNetwork(tags, config).eval()


def radial_of(network: TaggerNetwork) -> RadialBasis:
    assert network.head.radial is not None
    return network.head.radial
