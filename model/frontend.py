"""Log-mel spectrogram as a module of the network, so that training and serving cannot drift apart."""

from typing import Final

import torch
import torchaudio
from torch import Tensor, nn

SAMPLE_RATE_HZ: Final = 16_000
N_FFT: Final = 512
HOP: Final = 256
N_MELS: Final = 96
COMPRESSION: Final = 1e4


class LogMel(nn.Module):
    """Mono audio -> log10(1 + 10^4 mel power): [B, T] -> [B, 96, 1 + T // 256].

    The front end of musicnn (Pons & Serra 2019, `musicnn: Pre-trained convolutional neural networks for music
    audio tagging`): 96 Slaney mel bands up to 8 kHz of a 512 point power spectrum every 16 ms. Its
    compression has a soft floor, so that silence is 0 and not minus infinity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=SAMPLE_RATE_HZ,
            n_fft=N_FFT,
            hop_length=HOP,
            n_mels=N_MELS,
            power=None,  # the spectrum is squared below, which is faster than of its absolute values
            norm="slaney",
            mel_scale="slaney",
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, T] in [-1, 1] at 16 kHz -> [B, 96, frames], float32 also under autocast."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = self.mel.spectrogram(waveform.float())
            mel: Tensor = self.mel.mel_scale(spectrum.real.square() + spectrum.imag.square())
            return torch.log10(1.0 + COMPRESSION * mel)
