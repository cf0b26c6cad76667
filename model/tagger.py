"""The tagger: a clip in, scores out. `Tagger.load().tag("song.mp3").scores["vocal"]`."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from model.audio import SILENCE_PEAK, AudioInfo, AudioReader, Source
from model.bundle import SHIPPED, Bundle, Calibration, load_bundle
from model.engine import Engine, choose_engine
from model.network import SEGMENT_S, SEGMENT_SAMPLES, SEGMENTS_PER_WINDOW, TaggerNetwork
from model.segments import FloatArray, cut_segments

BATCH: Final = 8
"""Segments a forward pass in `Tagger.tag`: larger ones are slower on a CPU (they leave its cache)."""
TENTHS: Final = int(10 * SEGMENT_S)
"""Tenths of a second in a segment."""
LEAST_SOUNDING: Final = 1e-3
"""More than nothing, so that a window of silence has a mean, too."""
SILENCE_POWER: Final = 3
"""A segment counts as the share of it that sounds, to this power. Of 150 clips of `val` with up to 8 s of
silence behind, the ROC-AUC of soundtrack fell by 0.067 where all counted the same, and by 0.027, 0.007 and
0.000 with powers of 1, 2 and 3."""
HEAD_BATCH: Final = 256
"""Windows that the head takes at once: with all 1440 of two hours at once the service needed 11 MB more."""
OVERLAP: Final = SEGMENTS_PER_WINDOW - 1
"""Segments that a window shares with the one before."""


class DeviceError(ValueError):
    """A device that this machine does not have."""


@dataclass(frozen=True, slots=True)
class WindowScores:
    """Scores of one window; times in seconds of the clip."""

    start_s: float
    end_s: float
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Tagging:
    """Calibrated scores in [0, 1], in the order of the tags: of the clip and of each window."""

    scores: dict[str, float]
    windows: tuple[WindowScores, ...]
    audio: AudioInfo


def choose_device(device: str = "auto") -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: the device is unknown or not there.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    there = [name for name, count in counts.items() if count]
    try:
        chosen = torch.device(there[0] if device == "auto" else device)
        found = (chosen.index or 0) < counts.get(chosen.type, 0)
    except RuntimeError:  # nothing that PyTorch knows
        found = False
    if not found:
        raise DeviceError(f"no device {device!r} here; choose auto or one of: {', '.join(there)}")
    return chosen


def window_means(embeddings: FloatArray) -> FloatArray:
    """[N, E] of segments -> [max(1, N - 1), E] of windows; a lone segment is its own window."""
    if len(embeddings) < SEGMENTS_PER_WINDOW:
        return embeddings
    windows = len(embeddings) - OVERLAP
    segments = np.stack([embeddings[first : first + windows] for first in range(SEGMENTS_PER_WINDOW)])
    means: FloatArray = segments.mean(0)
    return means


def weighted_window_means(heard: FloatArray) -> tuple[FloatArray, NDArray[np.float64]]:
    """What `Tagger.embed` gave [N, E + 1] -> windows [W, E], and what each counts among them [W].

    Silence before, within or behind the music has no say, neither in its window nor in its clip.
    """
    embeddings, weights = heard[:, :-1], heard[:, -1:] ** SILENCE_POWER
    counts = window_means(weights)
    return window_means(embeddings * weights) / counts, counts[:, 0].astype(np.float64)


def sounding(segments: FloatArray) -> FloatArray:
    """Segments [B, T] -> how much of each is not silence, [B, 1] in [`LEAST_SOUNDING`, 1].

    A tenth of a second is silent if it never rises above -70 dBFS.
    """
    tenths = segments.reshape(len(segments), TENTHS, -1)
    peaks = np.maximum(tenths.max(-1), -tenths.min(-1))  # no copy of all samples, as their abs would be
    share: FloatArray = (peaks >= SILENCE_PEAK).mean(-1, keepdims=True, dtype=np.float32)
    return share.clip(LEAST_SOUNDING)


def pool_logits(
    logits: NDArray[np.float64], sharpness: float, weights: NDArray[np.float64] | None = None
) -> float:
    """Logits of windows [W] -> that of the clip: log-mean-exp of sharpness a (see `Calibration`).

    Windows count as much as `weights` [W] says, all the same without.
    """
    if sharpness == 0.0:
        return float(np.average(logits, weights=weights))
    extreme = logits.max() if sharpness > 0.0 else logits.min()  # so that no exponential overflows
    mean = np.average(np.exp(sharpness * (logits - extreme)), weights=weights)
    return float(extreme + np.log(mean) / sharpness)


def score(logits: NDArray[np.float64], calibration: Calibration) -> NDArray[np.float64]:
    """Logits -> calibrated scores in [0, 1], element by element."""
    # The sigmoid as a tanh, which never overflows.
    scores: NDArray[np.float64] = 0.5 + 0.5 * np.tanh((calibration.scale * logits + calibration.bias) / 2)
    return scores


class Tagger:
    """A loaded bundle on a device. Safe to use from several threads."""

    def __init__(self, bundle: Bundle, network: TaggerNetwork, device: torch.device, engine: Engine) -> None:
        self.bundle = bundle
        self.segment_samples = SEGMENT_SAMPLES
        self._device = device
        self._network = network
        self._engine = engine

    @classmethod
    def load(
        cls,
        weights: Path | None = None,
        device: str = "auto",
        engine: str = "auto",
        threads: int | None = None,
    ) -> Self:
        """Load a bundle's folder (the shipped one by default) onto a device (`auto`, `cuda`, `mps`, `cpu`).

        `engine` (`auto`, `torch`, `openvino`, `openvino-fp32`) and `threads` are those of `choose_engine`.

        Raises:
            BundleError: the bundle is missing, damaged or does not fit.
            DeviceError: there is no such device.
            EngineError: there is no such engine, or not for this device.
        """
        chosen = choose_device(device)
        bundle, network = load_bundle(weights or SHIPPED)
        network = network.to(chosen).eval()
        return cls(bundle, network, chosen, choose_engine(network, chosen, engine, threads))

    @property
    def device(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self._device.type

    @property
    def engine(self) -> str:
        """What computes the trunk: `torch` or `openvino`."""
        return self._engine.name

    @property
    def precision(self) -> str:
        """In which numbers it does so: `fp32` or `bf16`."""
        return self._engine.precision

    def tag(
        self,
        source: Source,
        *,
        start_s: float = 0.0,
        duration_s: float | None = None,
        min_s: float = 1.0,
        max_s: float = 7200.0,
    ) -> Tagging:
        """Tag a clip given as a path, its bytes or a binary file. Memory does not grow with its length.

        Args:
            source: see `AudioReader`, as for the others.
            start_s: seconds to leave out at the start.
            duration_s: seconds to hear; none: to the end.
            min_s: what is heard must be at least this long.
            max_s: and at most this long.

        Raises:
            AudioError: the clip is empty, not audio, undecodable, too short, too long or silent.
            OSError: the path or file cannot be read.
            ValueError: an argument is out of its range.
        """
        with AudioReader(
            source,
            sample_rate_hz=self.bundle.sample_rate_hz,
            start_s=start_s,
            duration_s=duration_s,
            min_s=min_s,
            max_s=max_s,
        ) as reader:
            segments = self.segments(reader)
            batches = iter(lambda: list(islice(segments, BATCH)), [])
            embeddings = np.concatenate([self.embed(np.stack(batch)) for batch in batches])
            return self.finish(embeddings, reader.info, start_s=start_s)

    def segments(self, reader: AudioReader) -> Iterator[FloatArray]:
        """The segments [segment_samples] of a clip, as it is decoded; raises what the reader raises."""
        return cut_segments(reader, self.segment_samples)

    def embed(self, segments: FloatArray) -> FloatArray:
        """Segments [B, segment_samples] -> [B, E + 1], row by row: their embeddings, and `sounding`."""
        return np.concatenate([self.trunk(segments), sounding(segments)], 1)

    def trunk(self, segments: FloatArray) -> FloatArray:
        """Segments [B, segment_samples] -> embeddings [B, E], row by row: all that needs the device."""
        return self._engine(segments)

    def finish(self, embeddings: FloatArray, audio: AudioInfo, *, start_s: float = 0.0) -> Tagging:
        """All that `embed` gave of a clip, in order [N, E + 1] -> its tagging; it began at `start_s`."""
        logits, weights = [], []
        for first in range(0, max(1, len(embeddings) - OVERLAP), HEAD_BATCH):
            windows, counts = weighted_window_means(embeddings[first : first + HEAD_BATCH + OVERLAP])
            logits.append(self.classify(windows))
            weights.append(counts)
        return self.conclude(np.concatenate(logits), np.concatenate(weights), audio, start_s=start_s)

    @torch.inference_mode()
    def classify(self, windows: FloatArray) -> NDArray[np.float64]:
        """Windows [W, E] -> a logit for each tag, [W, T]."""
        logits = self._network.classify(torch.from_numpy(windows).to(self._device))
        return np.asarray(logits.cpu().numpy(), np.float64)

    def conclude(
        self,
        logits: NDArray[np.float64],
        weights: NDArray[np.float64],
        audio: AudioInfo,
        *,
        start_s: float = 0.0,
    ) -> Tagging:
        """All windows' logits of a clip in order [W, T], and what each counts [W] -> its tagging."""
        calibrations = [self.bundle.calibration[tag] for tag in self.bundle.tags]
        columns = list(zip(self.bundle.tags, calibrations, logits.T, strict=True))
        scores = {tag: float(score(np.array(pool_logits(z, c.pooling, weights)), c)) for tag, c, z in columns}
        by_window = np.stack([score(z, c) for _, c, z in columns], 1)
        return Tagging(scores, self._timeline(by_window, start_s, start_s + audio.analysed_s), audio)

    def _timeline(
        self, scores: NDArray[np.float64], start_s: float, end_s: float
    ) -> tuple[WindowScores, ...]:
        starts = [start_s + index * self.bundle.hop_s for index in range(len(scores))]
        return tuple(
            WindowScores(
                start,
                min(start + self.bundle.window_s, end_s),
                dict(zip(self.bundle.tags, row.tolist(), strict=True)),
            )
            for start, row in zip(starts, scores, strict=True)
        )


class Rolling:
    """The scores of a clip that is still going on: add a segment, get the window that it completes.

    Of what was heard it keeps one embedding and T numbers a window (hop of 5 s): some 60 kB an hour.
    """

    def __init__(self, tagger: Tagger) -> None:
        self._tagger = tagger
        self._segments = 0
        self._last: list[FloatArray] = []
        self._logits: list[NDArray[np.float64]] = []
        self._weights: list[NDArray[np.float64]] = []

    def add(self, embedding: FloatArray, heard_s: float) -> WindowScores:
        """What `embed` gave of the next segment [E + 1] -> scores of the last two; of the first one alone.

        `heard_s` is the length of the clip so far, in seconds, at which the last window ends.
        """
        bundle = self._tagger.bundle
        segments = [*self._last, embedding]
        windows, weights = weighted_window_means(np.stack(segments))
        logits = self._tagger.classify(windows)[0]
        self._segments += 1
        if self._segments == SEGMENTS_PER_WINDOW:
            # The first alone was a makeshift: it is part of a window now.
            self._logits.clear()
            self._weights.clear()
        start_s = len(self._logits) * bundle.hop_s
        self._logits.append(logits)
        self._weights.append(weights)
        self._last = segments[1 - SEGMENTS_PER_WINDOW :]
        scores = {
            tag: float(score(z, bundle.calibration[tag])) for tag, z in zip(bundle.tags, logits, strict=True)
        }
        return WindowScores(start_s, min(start_s + len(segments) * bundle.hop_s, heard_s), scores)

    def finish(self, audio: AudioInfo) -> Tagging:
        """The whole clip's tagging, as `Tagger.finish` gives it; at least one segment was added."""
        return self._tagger.conclude(np.stack(self._logits), np.concatenate(self._weights), audio)
