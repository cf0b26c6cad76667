"""Spleeter as a teacher: its network with numbers of our own, and how much of a second is voice."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.frontend import SAMPLE_RATE_HZ
from model.training.separation import (
    CHANNELS,
    FRAMES,
    HOP,
    SPLEETER_RATE_HZ,
    UNet,
    VoiceMask,
)
from model.training.teachers import Compiled
from model.training.warm_start import Weights
from tests.model.tones import hears_high_notes, tone

SIZE = 64
"""Frames and bins: the least that can be halved six times."""


def checkpoint(stems: int = 2, seed: int = 1) -> Weights:
    """Small random numbers under Spleeter's names, in its shapes."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    inputs, outputs = (2, *CHANNELS[:-1]), (*reversed(CHANNELS[:-1]), 1)
    joined = (CHANNELS[-1], *(2 * channels for channels in outputs[:-1]))
    down = [*((5, 5, i, o) for i, o in zip(inputs, CHANNELS, strict=True)), (4, 4, 1, 2)]
    up = [(5, 5, o, i) for i, o in zip(joined, outputs, strict=True)]
    norms = ("gamma", "beta", "moving_mean", "moving_variance")
    for stem in range(stems):
        for name, shapes in (("conv2d", down), ("conv2d_transpose", up)):
            for index, shape in enumerate(shapes, stem * len(shapes)):
                layer = f"{name}_{index}" if index else name
                weights[f"{layer}/kernel"] = rng.normal(0.0, 0.05, shape).astype(np.float32)
                weights[f"{layer}/bias"] = np.zeros(shape[2] if name != "conv2d" else shape[3], np.float32)
        for index, channels in enumerate((*CHANNELS, *outputs), stem * 12):
            layer = f"batch_normalization_{index}" if index else "batch_normalization"
            for norm in norms:
                value = 1.0 if norm in ("gamma", "moving_variance") else 0.0
                weights[f"{layer}/{norm}"] = np.full(channels, value, np.float32)
    return weights


def impulse(row: int, column: int) -> Tensor:
    magnitudes = torch.zeros(1, 2, SIZE, SIZE)
    magnitudes[..., row, column] = 1.0
    return magnitudes


@torch.no_grad()
def test_what_goes_down_comes_up_where_it_was() -> None:
    # TensorFlow pads the end more than the start: tap 1 of 5 reads and writes the even places.
    weights = {name: np.zeros_like(array) for name, array in checkpoint().items()}
    for norm in (name for name in weights if name.endswith(("gamma", "moving_variance"))):
        weights[norm][:] = 1.0
    weights["conv2d/kernel"][1, 1, :, 0] = 1.0
    weights["conv2d_transpose_5/kernel"][1, 1, 0, 0] = 1.0  # from the first layer, past all others
    weights["conv2d_6/kernel"][1, 1] = 1.0  # tap 1 of 4, every second place: one to the left

    mask = UNet().load(weights, 0)(impulse(20, 30))

    assert torch.nonzero(mask[0, 0] > 0.5 + 1e-3).tolist() == [[21, 31]]
    assert torch.nonzero(UNet().load(weights, 0)(impulse(21, 30))[0, 0] > 0.5 + 1e-3).tolist() == []


@torch.no_grad()
def test_voice_is_the_first_stem_and_shares_are_of_power() -> None:
    weights = checkpoint()
    weights["conv2d_6/bias"][:] = 9.0  # the voice takes all
    weights["conv2d_13/bias"][:] = 0.0  # the rest half of the amplitude
    for layer in ("conv2d_6/kernel", "conv2d_13/kernel"):
        weights[layer][:] = 0.0

    share = VoiceMask(weights)(torch.ones(1, 2, SIZE, SIZE))

    torch.testing.assert_close(share, torch.full_like(share, 0.8), atol=1e-3, rtol=0)


@torch.no_grad()
def test_openvino_hears_what_pytorch_hears() -> None:
    mask = VoiceMask(checkpoint())
    magnitudes = torch.rand(1, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))

    (heard,) = Compiled(mask, magnitudes)(magnitudes)

    torch.testing.assert_close(torch.from_numpy(heard), mask(magnitudes), atol=0.05, rtol=0)


def test_each_second_is_told_how_much_of_it_is_voice() -> None:
    clip = torch.cat([tone(2000, 4), tone(5000, 3), tone(2000, 2) + tone(5000, 2)])

    share = hears_high_notes(3000)(clip)

    assert share.shape == (9, 1)
    assert share[:, 0] == pytest.approx([0, 0, 0, 0, 1, 1, 1, 0.5, 0.5], abs=0.1)


def test_below_1_khz_nothing_counts() -> None:
    bass = 3 * tone(200, 3)

    assert hears_high_notes(3000)(bass + tone(5000, 3))[1] == pytest.approx(1.0, abs=0.01)


def power_at(hertz: int, audio: Tensor) -> float:
    return float(
        torch.fft.rfft(audio * torch.hann_window(len(audio))).abs()[hertz * len(audio) // SAMPLE_RATE_HZ] ** 2
    )


def test_a_song_is_taken_apart_into_voice_and_rest_of_which_neither_holds_the_other() -> None:
    instruments, voice = tone(2000, 15), tone(5000, 15)

    sung, rest = hears_high_notes(3000).take_apart(instruments + voice)

    inside = slice(SAMPLE_RATE_HZ, -SAMPLE_RATE_HZ)
    torch.testing.assert_close(sung[inside], voice[inside], atol=0.02, rtol=0)
    torch.testing.assert_close(rest[inside], instruments[inside], atol=0.02, rtol=0)
    assert power_at(5000, rest[inside]) < 1e-6 * power_at(5000, voice[inside])


def test_clips_longer_than_the_network_sees_at_once_and_of_a_broken_second_are_heard_whole() -> None:
    seconds = 2.5 * FRAMES * HOP / SPLEETER_RATE_HZ

    share = hears_high_notes(3000)(tone(5000, seconds))

    assert share.shape == (int(seconds), 1)
    assert share.min() > 0.9


def test_a_clip_of_hardly_less_than_a_second_is_heard_as_one() -> None:
    assert hears_high_notes(3000)(tone(5000, 0.99)).shape == (1, 1)


def test_silence_is_no_voice() -> None:
    assert hears_high_notes(0)(torch.zeros(3 * SAMPLE_RATE_HZ)).max() == 0.0
    faint = torch.cat([tone(5000, 3), 1e-4 * tone(5000, 3)])
    assert hears_high_notes(3000)(faint)[4] < 0.01
