"""The public taggers as teachers: what they say of each part of a clip, to distil from.

The taggers are data outside the project; `--teachers DIR` names the folder that holds them and `teach.py`,
which reads them, and `--musicnn DIR` the unpacked wheel of PyPI's `musicnn`. musicnn runs here without its
dead filters (`warm_start`), which changes no score by more than rounding and takes a third of the time.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.frontend import LogMel
from model.network import MusicalBranch, NetworkConfig
from model.training import warm_start

MUSICNN_FRAMES = 187
"""Frames of musicnn's window, 3 s."""
YAMNET_WINDOW_S = 0.975


def load_teach(teachers: Path) -> Any:  # noqa: ANN401 - a module that only exists at run time
    """The module `teach.py` of the teachers' folder."""
    spec = importlib.util.spec_from_file_location("teach", teachers / "teach.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{teachers / 'teach.py'} is missing; give the folder of the public taggers")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LiveMusicnn(nn.Module):
    """musicnn without its dead filters: [B, 96, 187] log-mel -> features [B, 200], scores [B, 50]."""

    def __init__(self, weights: warm_start.Weights) -> None:
        super().__init__()
        config = warm_start.config_of(weights, NetworkConfig(band_stride=1))
        self.mel_norm = nn.BatchNorm2d(1, eps=1e-3)
        self.branch = MusicalBranch(config)
        warm_start.load_musical_branch(self.branch, self.mel_norm, weights)
        kernel, bias = warm_start.live_dense(weights)
        self.dense = nn.Linear(kernel.shape[0], kernel.shape[1])
        self.dense.weight.data = torch.from_numpy(kernel.T.copy())
        self.dense.bias.data = torch.from_numpy(bias)
        self.norm = nn.BatchNorm1d(kernel.shape[1], eps=1e-3)
        warm_start.set_norm(self.norm, weights, 10)
        self.out = nn.Linear(kernel.shape[1], weights["dense_1/bias"].size)
        self.out.weight.data = torch.from_numpy(weights["dense_1/kernel"].T.copy())
        self.out.bias.data = torch.from_numpy(weights["dense_1/bias"].copy())
        self.eval()

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 96, 187] -> ([B, 200], [B, 50])."""
        frames = self.branch(self.mel_norm(mel[:, None])).float()
        pooled = torch.cat([frames.amax(2), frames.mean(2)], 1)
        with torch.autocast(mel.device.type, enabled=False):
            features = self.norm(functional.relu(self.dense(pooled)))
            return features, self.out(features).sigmoid()


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the teachers say of one clip, of its windows or (Jamendo) of it whole."""

    jamendo: NDArray[np.float16]  # [50], the clip
    msd: NDArray[np.float16]  # [windows of 3 s, 50]
    msd_features: NDArray[np.float16]  # [windows of 3 s, 200]
    mtt: NDArray[np.float16]  # [windows of 3 s, 50]
    mtt_features: NDArray[np.float16]  # [windows of 3 s, 200]
    audioset: NDArray[np.float16]  # [windows of 0.975 s, 521]


class Teachers:
    """All the public taggers over one clip."""

    def __init__(self, teachers: Path, musicnn: Path) -> None:
        self.teach = load_teach(teachers)
        self.jamendo = self.teach.Jamendo(teachers / "jamendo_fcn.pth")
        self.yamnet = self.teach.Yamnet(teachers / "yamnet.tflite")
        self.log_mel = LogMel()
        read = self.teach.read_checkpoint
        self.msd, self.mtt = (
            LiveMusicnn(warm_start.read_musicnn(musicnn, read, name)) for name in ("MSD", "MTT")
        )

    @torch.inference_mode()
    def __call__(self, audio: Tensor) -> Lesson:
        """[T] mono float32 at 16 kHz, at least 3 s -> the lesson."""
        mel = self.log_mel(audio[None])[0]
        mel = mel.repeat(1, MUSICNN_FRAMES // mel.shape[1] + 1) if mel.shape[1] < MUSICNN_FRAMES else mel
        windows = mel.unfold(1, MUSICNN_FRAMES, MUSICNN_FRAMES).transpose(0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            jamendo = self.jamendo(audio)
            (msd_features, msd), (mtt_features, mtt) = self.msd(windows), self.mtt(windows)
        outs = (jamendo, msd, msd_features, mtt, mtt_features, self._yamnet_windows(audio))
        return Lesson(*(out.float().numpy().astype(np.float16) for out in outs))

    def _yamnet_windows(self, audio: Tensor) -> Tensor:
        parts = self.teach.windows(audio, YAMNET_WINDOW_S)
        return torch.stack([self.yamnet(part) for part in parts])
