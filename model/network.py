"""The network: 5 s segments of audio in, one logit a tag out.

Two views of one log-mel spectrogram, joined before the head:

* `MusicalBranch` has musicnn's filters (Pons & Serra 2019): tall ones for timbre, long ones for rhythm, then
  three convolutions over time. Only the filters that are alive in the published network are kept, which makes
  it about nine times as cheap; it starts from their weights and so knows a million commercial songs. A frozen
  copy of the convolutions keeps what the others forget as they learn.
* `TextureBranch` is a small inverted-residual network (Sandler et al. 2018), trained from scratch, for what a
  voice and a production sound like.

A *segment* (5 s) becomes an embedding; the embedding of a *window* (10 s) is the mean of its two segments',
and the head makes logits of it. So a window every 5 s costs no second pass over the audio.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.frontend import SAMPLE_RATE_HZ, LogMel

SEGMENT_S: Final = 5.0
SEGMENT_SAMPLES: Final = int(SEGMENT_S * SAMPLE_RATE_HZ)
SEGMENTS_PER_WINDOW: Final = 2
POOLS_PER_SEGMENT: Final = 2
"""Maxima and means are taken over 2.5 s, near the 3 s that musicnn's were, then averaged."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Shape of the network."""

    timbral: tuple[tuple[int, int, int], ...] = ((38, 7, 23), (67, 7, 14))
    """Tall filters: (mel bands, frames, number)."""
    temporal: tuple[tuple[int, int], ...] = ((128, 3), (64, 7), (32, 17))
    """Long filters: (frames, number)."""
    band_stride: int = 2
    """Tall and long filters are tried at every so-manieth mel band; the maximum over bands follows."""
    mid: int = 24
    """Channels of the three convolutions over time."""
    frozen: int = 8
    """Channels of the first of the three that stay frozen."""
    features: int = 0
    """Features of peaks and means, as musicnn's penultimate layer has them, beside these; 0 = none."""
    texture: tuple[tuple[int, int, int, int], ...] = (
        (1, 24, 2, 2), (3, 40, 1, 1), (3, 64, 2, 2), (4, 64, 1, 1),
        (4, 96, 2, 2), (4, 96, 1, 1), (4, 128, 1, 1), (4, 128, 1, 1),
    )  # fmt: skip
    """Inverted residuals: (expansion, channels, band stride, frame stride); none = no texture branch."""
    texture_stem: int = 16
    """Channels of the first convolution there."""
    texture_out: int = 256
    """Channels of the last one, of which maxima and means are the branch's embedding."""
    musical: bool = True
    """Whether there is a musical branch."""
    hidden: int = 256
    """Units of the head's hidden layer."""
    dropout: float = 0.15
    """Share of the head's inputs, and of its hidden units, that a step of training leaves out."""
    centres: int = 0
    """Of the radial basis functions that the head has of the frozen convolutions; 0 = neither."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, for the bundle."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "NetworkConfig":
        """From what `to_json` gave; lists become tuples again.

        Raises:
            TypeError: a value is missing, or unknown. None has a default here: a stride changes no weight's
                shape, so nothing else would tell that a network is not that which was trained.
        """
        if missing := {part.name for part in fields(cls)} - values.keys():
            raise TypeError(f"missing: {', '.join(sorted(missing))}")
        tuples: dict[str, Any] = {
            key: tuple(map(tuple, value)) if isinstance(value, list | tuple) else value
            for key, value in values.items()
        }
        return cls(**tuples)


def pool_parts(frames: Tensor) -> Tensor:
    """[B, C, T] -> [B, parts, 2 C]: the maxima and means over parts of the segment."""
    parts = frames.tensor_split(POOLS_PER_SEGMENT, dim=2)
    return torch.stack([torch.cat([part.amax(2), part.mean(2)], 1) for part in parts], 1)


class BandFilters(nn.Module):
    """Filters over (bands, frames), the maximum over bands: [B, 1, 96, T] -> [B, C, T]."""

    def __init__(self, bands: int, frames: int, channels: int, band_stride: int) -> None:
        super().__init__()
        self.padding = ((frames - 1) // 2, frames // 2)
        self.conv = nn.Conv2d(1, channels, (bands, frames), stride=(band_stride, 1))
        self.norm = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, mel: Tensor) -> Tensor:
        """[B, 1, 96, T] -> [B, C, T]."""
        padded = functional.pad(mel, self.padding)
        activation: Tensor = self.norm(functional.relu(self.conv(padded)))
        return activation.amax(2)


class TimeConv(nn.Module):
    """Seven frames of all channels, ReLU, batch norm: [B, C, T] -> [B, D, T / stride], rounded up."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, 7, stride, padding=3)
        self.norm = nn.BatchNorm1d(channels_out, eps=1e-3)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, C, T] -> [B, D, T / stride]."""
        activation: Tensor = self.norm(functional.relu(self.conv(frames)))
        return activation


class FrozenConvs(nn.Module):
    """musicnn's convolutions over time as they came, the last at every second frame: [B, C, T] -> [B, size].

    Those of the musical branch forget, as they learn, some of what a million songs taught them. These never
    learn. musicnn's first has few channels that are alive; `first` counts them.
    """

    def __init__(self, channels: int, first: int, mid: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [TimeConv(channels, first), TimeConv(first, mid), TimeConv(mid, mid, stride=2)]
        )
        self.size = 2 * (channels + first + 2 * mid)
        self.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - torch's signature
        """Norms stay as they are in training, too."""
        return super().train(mode=False)

    def forward(self, front: Tensor) -> Tensor:
        """What the filters find [B, C, T] -> maxima and means [B, size]."""
        return torch.cat([pool_parts(frames.float()).mean(1) for frames in self.frames(front)], 1)

    def frames(self, front: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, C, T] -> the same, and what each convolution finds, [B, D, T], the last one's [B, D, T / 2]."""
        first = self.convs[0](front)
        second = self.convs[1](first)
        second = second + functional.pad(first, (0, 0, 0, second.shape[1] - first.shape[1]))
        third = self.convs[2](second) + second[:, :, ::2]
        return front, first, second, third


class MusicalBranch(nn.Module):
    """Musically motivated filters: log-mel [B, 1, 96, T] -> [B, embedding_size]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        timbral = [BandFilters(*shape, config.band_stride) for shape in config.timbral]
        temporal = [BandFilters(1, *shape, config.band_stride) for shape in config.temporal]
        self.filters = nn.ModuleList([*timbral, *temporal])
        front = sum(shape[-1] for shape in (*config.timbral, *config.temporal))
        self.mid = nn.ModuleList(
            [TimeConv(front, config.mid), TimeConv(config.mid, config.mid), TimeConv(config.mid, config.mid)]
        )
        self.pooled = 2 * (front + 3 * config.mid)
        self.frozen = FrozenConvs(front, config.frozen, config.mid) if config.centres else None
        self.frozen_size = self.frozen.size if self.frozen else 0
        self.embedding_size = self.frozen_size + self.pooled + config.features
        self.has_features = config.features > 0
        if self.has_features:
            self.dense = nn.Linear(self.pooled, config.features)
            self.norm = nn.BatchNorm1d(config.features, eps=1e-3)

    def forward(self, mel: Tensor) -> Tensor:
        """[B, 1, 96, T] -> [B, embedding_size], what is frozen first."""
        front = self.front(mel)
        parts = pool_parts(self.frames(front).float())
        learnt = parts.mean(1)
        if self.has_features:
            features = self.features(parts.flatten(0, 1)).unflatten(0, parts.shape[:2])
            learnt = torch.cat([learnt, features.mean(1)], 1)
        return learnt if self.frozen is None else torch.cat([self.frozen(front), learnt], 1)

    def front(self, mel: Tensor) -> Tensor:
        """[B, 1, 96, T] -> what the filters find, [B, C, T]."""
        return torch.cat([filters(mel) for filters in self.filters], 1)

    def frames(self, front: Tensor) -> Tensor:
        """[B, C, T] -> what the filters and the convolutions find, [B, pooled / 2, T]."""
        first = self.mid[0](front)
        second = self.mid[1](first) + first
        third = self.mid[2](second) + second
        return torch.cat([front, first, second, third], 1)

    def features(self, pooled: Tensor) -> Tensor:
        """Maxima and means [B, pooled] -> musicnn's penultimate layer [B, features]."""
        features: Tensor = self.norm(functional.relu(self.dense(pooled)))
        return features


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project (Sandler et al. 2018): [B, C, F, T] -> [B, D, F / s, T / t]."""

    def __init__(self, channels_in: int, expansion: int, channels_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        inner = channels_in * expansion
        expand = [nn.Conv2d(channels_in, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(
            *(expand if expansion > 1 else []),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.residual = stride == (1, 1) and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, F, T] -> [B, D, F / s, T / t]."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class TextureBranch(nn.Module):
    """A small image network over the log-mel: [B, 1, 96, T] -> [B, embedding_size]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        stem = config.texture_stem
        layers: list[nn.Module] = [
            nn.Conv2d(1, stem, 3, 2, 1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        ]
        channels = stem
        for expansion, channels_out, band_stride, frame_stride in config.texture:
            layers.append(InvertedResidual(channels, expansion, channels_out, (band_stride, frame_stride)))
            channels = channels_out
        self.embedding_size = 2 * config.texture_out
        layers += [
            nn.Conv2d(channels, config.texture_out, 1, bias=False),
            nn.BatchNorm2d(config.texture_out),
            nn.ReLU(inplace=True),
        ]
        self.layers = nn.Sequential(*layers)
        # Twice as fast on a CPU. Not for the whole network: oneDNN's channels-last convolution with one input
        # channel and a kernel of 64 frames or more writes beyond its buffers (seen with torch 2.14.1).
        self.to(memory_format=torch.channels_last)

    def forward(self, mel: Tensor) -> Tensor:
        """[B, 1, 96, T] -> [B, embedding_size]."""
        x: Tensor = self.layers(mel)
        return pool_parts(x.mean(2).float()).mean(1)


class RadialBasis(nn.Module):
    """Gaussians round centres, and a straight line: [B, E] -> [B, K] (Broomhead & Lowe 1988).

    With a ridge this is kernel regression on Nystroem's features. It is fitted in closed form, once; far from
    all that it was fitted on, only the line is left.
    """

    mean: Tensor
    deviation: Tensor
    centres: Tensor
    width: Tensor
    beside: Tensor
    """How much the head's other logits count beside these, [K]."""

    def __init__(self, size: int, centres: int, tags: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.register_buffer("centres", torch.zeros(centres, size))
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("beside", torch.ones(tags))
        self.out = nn.Linear(centres + size, tags).requires_grad_(requires_grad=False)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def features(self, x: Tensor) -> Tensor:
        """[B, E] -> the Gaussians and the standardised input, [B, centres + E]."""
        standard = (x - self.mean) / self.deviation
        # |x - c|^2 as a product of matrices: of 256 windows it takes a twentieth of torch.cdist without one.
        lengths = standard.square().sum(1, keepdim=True) + self.centres.square().sum(1)
        squared = (lengths - 2 * standard @ self.centres.T).clamp_min(0)
        return torch.cat([torch.exp(-squared / self.width**2), standard], 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, E] -> [B, K]."""
        logits: Tensor = self.out(self.features(x))
        return logits


class Head(nn.Module):
    """Embedding of a window -> one logit a tag: [B, E] -> [B, K].

    A hidden layer, and beside it a straight line from the embedding: what musicnn's features say of a tag is
    linear in them. Of what the frozen convolutions find, the first part of the embedding, radial basis
    functions add their own opinion.

    Args:
        config: whose `centres` the radial basis functions have.
        frozen_size: of that part; 0 = none.
        learnt: size of the rest.
        tags: how many.
    """

    def __init__(self, config: NetworkConfig, frozen_size: int, learnt: int, tags: int) -> None:
        super().__init__()
        hidden, dropout = config.hidden, config.dropout
        self.norm = nn.BatchNorm1d(learnt, eps=1e-3)
        self.hidden = nn.Linear(learnt, hidden)
        self.hidden_norm = nn.BatchNorm1d(hidden, eps=1e-3)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, tags)
        self.straight = nn.Linear(learnt, tags, bias=False)
        self.frozen_size = frozen_size
        self.radial = RadialBasis(frozen_size, config.centres, tags) if frozen_size else None

    def logits_and_features(self, learnt: Tensor) -> tuple[Tensor, Tensor]:
        """[B, learnt] -> [B, K] without the radial basis, and the hidden layer [B, hidden]."""
        normed = self.norm(learnt)
        features: Tensor = self.hidden_norm(functional.relu(self.hidden(self.dropout(normed))))
        return self.out(self.dropout(features)) + self.straight(normed), features

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, E] -> [B, K]."""
        logits = self.logits_and_features(embedding[:, self.frozen_size :])[0]
        if self.radial is None:
            return logits
        joined: Tensor = self.radial.beside * logits + self.radial(embedding[:, : self.frozen_size])
        return joined


class TaggerNetwork(nn.Module):
    """Audio to logits. `embed` and `classify` are its two halves; `forward` is both over one window."""

    def __init__(self, tags: Sequence[str], config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.tags = tuple(tags)
        self.config = config or NetworkConfig()
        self.log_mel = LogMel(levelled=True)
        self.mel_norm = nn.BatchNorm2d(1, eps=1e-3)
        branches: list[MusicalBranch | TextureBranch] = []
        if self.config.musical:
            branches.append(MusicalBranch(self.config))
        if self.config.texture:
            branches.append(TextureBranch(self.config))
        self.branches = nn.ModuleList(branches)
        self.embedding_size = sum(branch.embedding_size for branch in branches)
        frozen_size = sum(branch.frozen_size for branch in branches if isinstance(branch, MusicalBranch))
        self.head = Head(self.config, frozen_size, self.embedding_size - frozen_size, len(self.tags))

    def embed(self, segments: Tensor) -> Tensor:
        """Segments of audio [B, 80000] in [-1, 1] at 16 kHz -> embeddings [B, E], row by row."""
        return self.embed_mel(self.log_mel(segments))

    def embed_mel(self, mel: Tensor) -> Tensor:
        """Log-mel of segments, levelled, [B, 96, T] -> embeddings [B, E]."""
        normed = self.mel_norm(mel[:, None])
        return torch.cat([branch(normed) for branch in self.branches], 1)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Embeddings of windows (means of their segments') [B, E] -> logits [B, K]."""
        logits: Tensor = self.head(embeddings)
        return logits

    def forward(self, windows: Tensor) -> Tensor:
        """Windows of audio [B, n * 80000] -> logits [B, K]."""
        embeddings = self.embed(windows.reshape(-1, SEGMENT_SAMPLES))
        return self.classify(embeddings.reshape(len(windows), -1, self.embedding_size).mean(1))
