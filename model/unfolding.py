"""The network's band filters and mel scale in other shapes, which a CPU computes faster: the same sums.

A convolution with one input channel, as `BandFilters` has, leaves much of a CPU's wide registers empty, and
half of its bfloat16 instructions, which add up two channels at a time. Channels stay the innermost dimension
in memory, so that nothing is moved to take the maximum.
"""

import copy
from functools import reduce
from typing import Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.frontend import N_MELS, LogMel
from model.network import BandFilters, MusicalBranch

Network = TypeVar("Network", bound=nn.Module)

GROUP: Final = 5
"""Positions of a tall filter in one convolution: more multiply more zeros, fewer leave registers empty."""
FOLD: Final = 16
"""Frames that become channels for a long filter."""
MEL_PARTS: Final = 4
"""Of the mel scale, each with the frequencies that its bands hear: a matrix of which 98 % are zeros."""


class TallFilters(nn.Module):
    """`BandFilters` as convolutions over time whose input channels are bands: [B, 1, 96, T] -> [B, C, T].

    Each filter at each position is an output channel, with zeros for the bands that it does not see there.
    One convolution serves all groups of positions, as they are as large: the last two overlap if need be.
    """

    def __init__(self, filters: BandFilters) -> None:
        super().__init__()
        self.padding = filters.padding
        self.channels, _, height, width = filters.conv.weight.shape
        stride = filters.conv.stride[0]
        positions = (N_MELS - height) // stride + 1
        group = min(GROUP, positions)
        self.firsts = [min(start, positions - group) * stride for start in range(0, positions, group)]
        self.seen = height + (group - 1) * stride
        weight = torch.zeros(group, self.channels, self.seen, width)
        for position in range(group):
            first = position * stride
            weight[position, :, first : first + height] = filters.conv.weight[:, 0]
        self.conv = _layer(weight.flatten(0, 1)[:, :, None], filters, group)

    def forward(self, mel: Tensor) -> Tensor:
        """[B, 1, 96, T] -> [B, C, T]."""
        bands = functional.pad(mel, self.padding).transpose(1, 2)
        groups = [self.conv(bands[:, first : first + self.seen]) for first in self.firsts]
        found = reduce(torch.maximum, groups).permute(0, 2, 3, 1).flatten(1, 2)
        peaks: Tensor = found.unflatten(2, (-1, self.channels)).amax(2)
        return peaks.transpose(1, 2)


class LongFilters(nn.Module):
    """`BandFilters` one band tall, `FOLD` frames at a time: [B, 1, 96, T] -> [B, C, T].

    Frame `FOLD * i + j` of a band becomes channel j of column i; the answers unfold in the same way.
    """

    def __init__(self, filters: BandFilters) -> None:
        super().__init__()
        self.padding = filters.padding
        self.stride = filters.conv.stride[0]
        self.channels, _, _, width = filters.conv.weight.shape
        self.columns = -(-(width + FOLD - 1) // FOLD)
        weight = torch.zeros(FOLD, self.channels, self.columns * FOLD)
        for shift in range(FOLD):
            weight[shift, :, shift : shift + width] = filters.conv.weight[:, 0, 0]
        folded = weight.flatten(0, 1).unflatten(1, (self.columns, FOLD)).transpose(1, 2)
        self.conv = _layer(folded[:, :, None], filters, FOLD)

    def forward(self, mel: Tensor) -> Tensor:
        """[B, 1, 96, T] -> [B, C, T]."""
        frames = mel.shape[-1]
        left, _ = self.padding
        right = (-(-frames // FOLD) + self.columns - 1) * FOLD - frames - left
        padded = functional.pad(mel[:, 0, :: self.stride], (left, right))
        found = self.conv(padded.unflatten(2, (-1, FOLD)).permute(0, 3, 1, 2))
        peaks: Tensor = found.permute(0, 2, 3, 1).amax(1)
        unfolded: Tensor = peaks.unflatten(2, (FOLD, self.channels)).flatten(1, 2)
        return unfolded[:, :frames].transpose(1, 2)


class MelScaleInParts(nn.Module):
    """A mel scale as several matrices: power [B, F, T] -> mel power [B, M, T].

    Args:
        filters: what each band hears of each frequency, [F, M].
    """

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.heard: list[slice] = []
        self.filters = nn.ParameterList()
        for bands in filters.tensor_split(MEL_PARTS, 1):
            frequencies = bands.any(1).nonzero()
            self.heard.append(slice(int(frequencies.min()), int(frequencies.max()) + 1))
            self.filters.append(nn.Parameter(bands[self.heard[-1]].T.contiguous(), requires_grad=False))

    def forward(self, power: Tensor) -> Tensor:
        """[B, F, T] -> [B, M, T]."""
        parts = [bands @ power[:, heard] for bands, heard in zip(self.filters, self.heard, strict=True)]
        return torch.cat(parts, 1)


def unfold_mel_scale(log_mel: LogMel) -> LogMel:
    """A copy of a log-mel, for inference only, that computes the same within rounding, and faster."""
    fast = copy.deepcopy(log_mel)
    fast.mel.mel_scale = MelScaleInParts(log_mel.mel.mel_scale.fb)
    return fast


def unfold_filters(network: Network) -> Network:
    """A copy of a network, for inference only, that computes the same within rounding, and faster."""
    fast = copy.deepcopy(network).eval().requires_grad_(False)
    for module in fast.modules():
        if isinstance(module, MusicalBranch):
            module.filters = nn.ModuleList([_unfold(filters) for filters in module.filters])
    return fast


def _unfold(filters: nn.Module) -> nn.Module:
    assert isinstance(filters, BandFilters)  # noqa: S101 - for the type checker
    fast = LongFilters(filters) if filters.conv.kernel_size[0] == 1 else TallFilters(filters)
    return fast.to(filters.conv.weight.device)


def _layer(weight: Tensor, filters: BandFilters, times: int) -> nn.Sequential:
    """Convolution, ReLU and batch norm with that weight, and the others of `filters` so many times over."""
    channels_out, channels_in, bands, frames = weight.shape
    conv = nn.Conv2d(channels_in, channels_out, (bands, frames))
    conv.load_state_dict({"weight": weight, "bias": _repeat(filters.conv.state_dict()["bias"], times)})
    norm = nn.BatchNorm2d(channels_out, eps=filters.norm.eps)
    norm.load_state_dict({name: _repeat(value, times) for name, value in filters.norm.state_dict().items()})
    return nn.Sequential(conv, nn.ReLU(), norm).eval().requires_grad_(False)


def _repeat(value: Tensor, times: int) -> Tensor:
    return value.repeat(times) if value.ndim else value
