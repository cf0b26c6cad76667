"""Tones, and a separator that takes the high ones for a voice."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.frontend import SAMPLE_RATE_HZ
from model.training.separation import BINS, FRAMES, SPLEETER_RATE_HZ, WINDOW, Separator


def hears_high_notes(edge_hz: float) -> Separator:
    """A separator to which all above `edge_hz` is voice."""
    share = np.zeros((1, 2, FRAMES, BINS), np.float32)
    share[..., round(edge_hz * WINDOW / SPLEETER_RATE_HZ) :] = 1.0
    return _hears(share)


def hears_low_notes(edge_hz: float) -> Separator:
    """A separator to which all below `edge_hz` is voice."""
    share = np.zeros((1, 2, FRAMES, BINS), np.float32)
    share[..., : round(edge_hz * WINDOW / SPLEETER_RATE_HZ)] = 1.0
    return _hears(share)


def _hears(share: NDArray[np.float32]) -> Separator:
    """A separator to which [1, 2, FRAMES, BINS] of everything is voice."""

    def mask(magnitudes: Tensor) -> list[NDArray[np.float32]]:
        assert magnitudes.shape[1:] == Separator.EXAMPLE.shape[1:]
        return [np.repeat(share, len(magnitudes), 0)]

    return Separator(mask)


def tone(hertz: float, seconds: float) -> Tensor:
    return 0.3 * torch.sin(
        2 * torch.pi * hertz * torch.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    )
