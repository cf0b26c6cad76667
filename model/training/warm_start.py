"""Start the musical branch from musicnn, exactly, at a ninth of its cost.

musicnn is by Pons & Serra (2019), on PyPI under the ISC licence. Of the 561 front-end filters of the network
that was trained on the Million Song Dataset only 64 are alive: weight decay took the others to zero, and what
they add is a constant. The live ones are copied; the constants go into the biases.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.network import BandFilters, MusicalBranch, NetworkConfig, TimeConv

Weights = dict[str, NDArray[np.float32]]

ALIVE = 1e-3
"""A filter is alive if its norm is above this share of the largest one's."""
BN_EPS = 1e-3


def suffixed(name: str, index: int) -> str:
    """TensorFlow's name of the layer `index` of its kind, `name`: the first has no number."""
    return f"{name}_{index}" if index else name


def _norms(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = np.sqrt((kernel.astype(np.float64) ** 2).sum(axis=(0, 1))).astype(np.float32)
    return norms


def alive_filters(weights: Weights, index: int) -> NDArray[np.intp]:
    """Indices of the filters of convolution `index` that are not dead."""
    norms = _norms(weights[suffixed("conv2d", index) + "/kernel"][:, :, 0, :])
    return np.flatnonzero(norms > ALIVE * norms.max())


def alive_mid(weights: Weights) -> NDArray[np.intp]:
    """Channels that at least one of the three convolutions over time writes."""
    return np.unique(np.concatenate([alive_filters(weights, index) for index in (5, 6, 7)]))


def config_of(weights: Weights, base: NetworkConfig) -> NetworkConfig:
    """`base` with just the live filters of this checkpoint in its musical branch."""
    n = [len(alive_filters(weights, index)) for index in range(5)]
    return replace(
        base,
        timbral=((38, 7, n[0]), (67, 7, n[1])),
        temporal=((128, n[2]), (64, n[3]), (32, n[4])),
        mid=len(alive_mid(weights)),
        frozen=len(alive_filters(weights, 5)),
    )


def _set(parameter: Tensor | None, value: NDArray[np.float32]) -> None:
    assert parameter is not None  # noqa: S101
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(value.copy()))


def set_norm(
    norm: nn.BatchNorm1d | nn.BatchNorm2d,
    weights: Weights,
    index: int,
    keep: slice | NDArray[np.intp] = slice(None),
) -> None:
    """Copy batch norm `index` (the channels `keep` of it), in place."""
    name = suffixed("batch_normalization", index)
    _set(norm.weight, weights[name + "/gamma"][keep])
    _set(norm.bias, weights[name + "/beta"][keep])
    _set(norm.running_mean, weights[name + "/moving_mean"][keep])
    _set(norm.running_var, weights[name + "/moving_variance"][keep])


def set_conv(conv: nn.Conv2d | nn.ConvTranspose2d, weights: Weights, name: str) -> None:
    """Copy the two-dimensional convolution `name`, transposed or not, in place."""
    _set(conv.weight, weights[name + "/kernel"].transpose(3, 2, 0, 1))
    _set(conv.bias, weights[name + "/bias"])


def _constants(weights: Weights, conv: int, norm: int) -> NDArray[np.float32]:
    """What a dead filter puts out: its bias through ReLU and batch norm."""
    name = suffixed("batch_normalization", norm)
    relu = np.maximum(weights[suffixed("conv2d", conv) + "/bias"], 0)
    scale = weights[name + "/gamma"] / np.sqrt(weights[name + "/moving_variance"] + BN_EPS)
    constants: NDArray[np.float32] = (relu - weights[name + "/moving_mean"]) * scale + weights[name + "/beta"]
    return constants


def load_musical_branch(branch: MusicalBranch, mel_norm: nn.BatchNorm2d, weights: Weights) -> None:
    """Copy the live filters, and the batch norm before them, in place."""
    set_norm(mel_norm, weights, 0)
    keep = [alive_filters(weights, index) for index in range(5)]
    for index, module in enumerate(cast("list[BandFilters]", list(branch.filters))):
        name = suffixed("conv2d", index)
        kernel = weights[name + "/kernel"][:, :, 0, :][..., keep[index]]  # frames, bands, filters
        _set(module.conv.weight, kernel.transpose(2, 1, 0)[:, None])
        _set(module.conv.bias, weights[name + "/bias"][keep[index]])
        set_norm(module.norm, weights, index + 1, keep[index])
    offsets = np.cumsum([0, *(weights[suffixed("conv2d", i) + "/bias"].size for i in range(5))])
    alive_in = np.concatenate([k + offset for k, offset in zip(keep, offsets, strict=False)])
    constants = np.concatenate([_constants(weights, index, index + 1) for index in range(5)])
    mid = alive_mid(weights)
    _load_over_time(branch.mid, (mid, mid, mid), weights, alive_in, constants)
    if branch.frozen is not None:
        first = alive_filters(weights, 5)
        rest = np.concatenate([first, np.setdiff1d(mid, first)])
        _load_over_time(branch.frozen.convs, (first, rest, rest), weights, alive_in, constants)
    if branch.has_features:
        kernel, bias = live_dense(weights)
        _set(branch.dense.weight, kernel.T)
        _set(branch.dense.bias, bias)
        set_norm(branch.norm, weights, 10)


def _load_over_time(
    layers: nn.ModuleList,
    written: Sequence[NDArray[np.intp]],
    weights: Weights,
    alive_in: NDArray[np.intp],
    constants: NDArray[np.float32],
) -> None:
    """Copy the three convolutions over time, in place.

    Args:
        layers: three `TimeConv`.
        written: channels of musicnn that each of them writes, in this order.
        weights: of musicnn.
        alive_in: channels of the front that the first one reads; the others are `constants`.
        constants: what each channel of the front puts out if it is dead.
    """
    for step, (layer, out) in enumerate(zip(cast("list[TimeConv]", list(layers)), written, strict=True)):
        name = suffixed("conv2d", 5 + step)
        kernel = weights[name + "/kernel"][:, :, 0, :]  # frames, in, out
        dead = np.setdiff1d(np.arange(kernel.shape[1]), alive_in)
        bias = weights[name + "/bias"] + np.einsum("tio,i->o", kernel[:, dead], constants[dead])
        _set(layer.conv.weight, kernel[:, alive_in][..., out].transpose(2, 1, 0))
        _set(layer.conv.bias, bias[out])
        set_norm(layer.norm, weights, 6 + step, out)
        own = _constants(weights, 5 + step, 6 + step)
        if step:  # the layer's input is added to what it puts out
            from_dead = np.where(np.isin(out, dead), constants[out], 0)
            _set(layer.norm.bias, layer.norm.bias.detach().numpy() + from_dead)
        constants = own + constants if step else own
        alive_in = out


def live_dense(weights: Weights) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The dense layer over (maxima, means) of live channels, norm folded in: [2 C, 200] and [200]."""
    front_keep = [alive_filters(weights, index) for index in range(5)]
    sizes = [weights[suffixed("conv2d", i) + "/bias"].size for i in range(5)]
    mid_size = weights["conv2d_5/bias"].size
    mid = alive_mid(weights)
    offsets = np.cumsum([0, *sizes, mid_size, mid_size])
    live = np.concatenate([k + o for k, o in zip([*front_keep, mid, mid, mid], offsets, strict=True)])
    first = _constants(weights, 5, 6)
    second = first + _constants(weights, 6, 7)
    third = second + _constants(weights, 7, 8)
    constants = np.concatenate([*(_constants(weights, i, i + 1) for i in range(5)), first, second, third])
    scale = weights["batch_normalization_9/gamma"] / np.sqrt(
        weights["batch_normalization_9/moving_variance"] + BN_EPS
    )
    shift = weights["batch_normalization_9/beta"] - weights["batch_normalization_9/moving_mean"] * scale
    kernel = weights["dense/kernel"] * scale[:, None]  # rows: (channel, maximum or mean)
    bias = weights["dense/bias"] + shift @ weights["dense/kernel"]
    dead = np.setdiff1d(np.arange(constants.size), live)
    bias = bias + constants[dead] @ (kernel[2 * dead] + kernel[2 * dead + 1])
    return np.concatenate([kernel[2 * live], kernel[2 * live + 1]]), bias.astype(np.float32)


def read_musicnn(directory: Path, reader: Callable[[str], Weights], model: str = "MSD") -> Weights:
    """The checkpoint of the unpacked wheel, read by `teach.read_checkpoint`."""
    return reader(f"{directory}/musicnn/{model}_musicnn/")
