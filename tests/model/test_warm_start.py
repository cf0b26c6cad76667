"""The musical branch's start from musicnn: what is dead is left out, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.network import MusicalBranch, NetworkConfig, TaggerNetwork
from model.training import warm_start
from model.training.teachers import FEATURES, MUSICNN_FRAMES, Compiled, LiveMusicnn
from model.training.warm_start import Weights, config_of, load_musical_branch

FILTERS = ((7, 38, 5), (7, 67, 4), (128, 1, 3), (64, 1, 3), (32, 1, 4))
"""(frames, bands, filters) of the five convolutions of the front."""
DEAD = (2, 1, 1, 0, 3)
"""How many of each weight decay took to zero."""
MID, DEAD_MID = 10, (6, 1, 0)
"""Channels of the convolutions over time; how many each of the three writes no more."""
WORDS = 50
EDGE = 9
"""Frames at both ends where a constant counts as a constant, and the padding of musicnn as zero."""


@pytest.fixture
def weights() -> Weights:
    """A checkpoint as musicnn's are, but small and random, some of its filters dead."""
    rng = np.random.default_rng(0)
    found: Weights = {}
    front = sum(number for *_, number in FILTERS)
    shapes = [*FILTERS, (7, front, MID), (7, MID, MID), (7, MID, MID)]
    for index, (shape, dead) in enumerate(zip(shapes, (*DEAD, *DEAD_MID), strict=True)):
        frames, bands, number = shape
        kernel = rng.standard_normal((frames, bands, 1, number)) / np.sqrt(frames * bands)
        kernel[..., rng.permutation(number)[:dead]] = 0
        name = f"conv2d_{index}" if index else "conv2d"
        found[name + "/kernel"] = kernel.astype(np.float32)
        found[name + "/bias"] = rng.standard_normal(number).astype(np.float32)
        found |= norm(index + 1, number, rng)
    pooled = 2 * (front + 3 * MID)
    for name, inputs, outputs in (("dense", pooled, FEATURES), ("dense_1", FEATURES, WORDS)):
        found[name + "/kernel"] = rng.standard_normal((inputs, outputs)).astype(np.float32) / inputs**0.5
        found[name + "/bias"] = rng.standard_normal(outputs).astype(np.float32)
    return found | norm(0, 1, rng) | norm(9, pooled, rng) | norm(10, FEATURES, rng)


def norm(index: int, channels: int, rng: np.random.Generator) -> Weights:
    name = f"batch_normalization_{index}" if index else "batch_normalization"
    values = {
        "gamma": rng.uniform(0.5, 2, channels),
        "beta": rng.standard_normal(channels),
        "moving_mean": rng.standard_normal(channels),
        "moving_variance": rng.uniform(0.5, 2, channels),
    }
    return {f"{name}/{key}": value.astype(np.float32) for key, value in values.items()}


def branch_of(weights: Weights) -> MusicalBranch:
    network = TaggerNetwork(("a",), config_of(weights, NetworkConfig(band_stride=1, centres=4))).eval()
    branch = network.branches[0]
    assert isinstance(branch, MusicalBranch)
    load_musical_branch(branch, network.mel_norm, weights)
    return branch


def log_mel() -> Tensor:
    return torch.rand(2, 1, 96, 313, generator=torch.Generator().manual_seed(0))


def test_only_what_is_alive_is_kept(weights: Weights) -> None:
    config = config_of(weights, NetworkConfig())

    assert config == replace(
        NetworkConfig(),
        timbral=((38, 7, 3), (67, 7, 3)),
        temporal=((128, 2), (64, 3), (32, 1)),
        mid=MID,
        frozen=MID - DEAD_MID[0],
    )


@torch.no_grad()
def test_what_is_alive_finds_what_it_found_among_the_dead(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = branch_of(weights)
    monkeypatch.setattr(warm_start, "ALIVE", -1.0)
    whole = branch_of(weights)

    found = pruned.frames(pruned.front(log_mel()))[:, -3 * MID :, EDGE:-EDGE]
    expected = whole.frames(whole.front(log_mel()))[:, -3 * MID :, EDGE:-EDGE]

    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_frozen_convolutions_find_what_those_that_will_learn_begin_with(weights: Weights) -> None:
    branch = branch_of(weights)
    front = branch.front(log_mel())
    first, second, third = branch.frames(front)[:, -3 * MID :].unflatten(1, (3, MID)).unbind(1)
    alive = warm_start.alive_filters(weights, 5).tolist()
    order = [*alive, *(channel for channel in range(MID) if channel not in alive)]

    assert branch.frozen is not None
    found = branch.frozen.frames(front)

    inner = slice(EDGE, -EDGE)
    torch.testing.assert_close(found[0][:, :, inner], front[:, :, inner])
    torch.testing.assert_close(found[1][:, :, inner], first[:, alive, inner])
    torch.testing.assert_close(found[2][:, :, inner], second[:, order, inner], atol=1e-4, rtol=1e-4)
    inner = slice(EDGE // 2 + 1, -EDGE // 2)
    torch.testing.assert_close(found[3][:, :, inner], third[:, order, ::2][:, :, inner], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_all_of_musicnn_teaches_in_openvino_as_in_pytorch(weights: Weights) -> None:
    teacher = LiveMusicnn(weights)
    windows = log_mel()[:, 0, :, :MUSICNN_FRAMES]

    features, scores = Compiled(teacher, windows[:1])(windows)

    expected = teacher(windows)
    assert scores.shape == (2, WORDS)
    torch.testing.assert_close(torch.from_numpy(features), expected[0], atol=0.05, rtol=0.05)
    torch.testing.assert_close(torch.from_numpy(scores), expected[1], atol=0.02, rtol=0)
