"""What computes the network's trunk: PyTorch, the reference and the GPU's engine, or OpenVINO on a CPU.

OpenVINO gets its graph from the network in memory, so there is no second file of weights that could drift
from the first, and must agree with PyTorch on a probe before it may serve. It computes one segment at a time
on one thread, several segments beside each other: so a row cannot depend on its batch, no thread waits for
another, and the memory does not grow with the batch.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import local
from typing import Any, Final, Protocol

import numpy as np
import torch
from loky import cpu_count
from torch import Tensor, nn

from model.frontend import SAMPLE_RATE_HZ
from model.network import SEGMENT_SAMPLES, TaggerNetwork
from model.segments import FloatArray
from model.unfolding import unfold_filters, unfold_mel_scale

ENGINES: Final = ("auto", "torch", "openvino", "openvino-fp32")
TOLERANCE: Final = {"fp32": 1e-3, "bf16": 5e-2}
"""By how much scores before calibration may differ from PyTorch's in fp32, by the engine's precision.

On 446 segments of `val` bf16 moves a logit by 0.04 (standard deviation), and so the score of one by up to
0.035. An engine that is broken is off by far more.
"""
SLICE: Final = 64
"""Segments of a slice, 20 MB: enough to fill a GPU, and small enough that copying the first delays little."""
MAX_THREADS: Final = 8
"""As many as a batch has segments by default: more would find nothing to do, and each takes memory."""

logger = logging.getLogger(__name__)


class EngineError(ValueError):
    """An engine that is unknown, or that does not fit the device. The message says what to choose."""


class EngineFailureError(RuntimeError):
    """An engine that disagrees with PyTorch on the probe."""


class Engine(Protocol):
    """Segments [B, SEGMENT_SAMPLES] -> embeddings [B, E], row by row; thread-safe."""

    name: str
    precision: str

    def __call__(self, segments: FloatArray) -> FloatArray:
        """Compute the trunk."""
        ...


class LocalEngine(Engine, Protocol):
    """One that computes in this process, and so is also asked without its log-mel."""

    def embed_mels(self, mels: FloatArray) -> FloatArray:
        """Compute what is behind the log-mel: levelled log-mels of segments [B, 96, T] -> [B, E]."""
        ...


class TorchEngine:
    """The network as it is, in float32; on CUDA its convolutions compute in TF32 where the GPU can.

    On CUDA a batch is taken in slices: while the network works on one, the next is copied there from pinned
    memory on a stream of its own. Each is filled up with silence to one size, as CUDA prepares its kernels
    anew for each, which takes a second or two.

    Args:
        network: on `device`, in evaluation mode.
        device: where it runs.
        threads: of the CPU, set for the whole process; none leaves them.
        precision: `fp32`, or `bf16` by autocast, which was no faster on an H100.
    """

    name = "torch"

    def __init__(
        self,
        network: TaggerNetwork,
        device: torch.device,
        threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._network = unfold_filters(network) if self._on_cuda else network
        self.precision = precision
        self._copies = torch.cuda.Stream(device) if self._on_cuda else None
        if threads is not None and device.type == "cpu":
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def __call__(self, segments: FloatArray) -> FloatArray:
        """See Engine."""
        slices = torch.from_numpy(segments).split(SLICE)
        ahead = self._copy(slices[0])
        embeddings = []
        for following in (*slices[1:], None):
            waveform = self._wait_for(ahead)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                embeddings.append(self._network.embed(waveform).float())  # CUDA works, and this goes on
            if following is not None:
                ahead = self._copy(following)
        found: FloatArray = torch.cat(embeddings)[: len(segments)].cpu().numpy()
        return found

    @torch.inference_mode()
    def embed_mels(self, mels: FloatArray) -> FloatArray:
        """See Engine."""
        slices = torch.from_numpy(mels).split(SLICE)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            embeddings = [self._network.embed_mel(part.to(self._device)).float() for part in slices]
        found: FloatArray = torch.cat(embeddings).cpu().numpy()
        return found

    def _copy(self, segments: Tensor) -> Tensor:
        """Begin to copy a slice to the device; only CUDA goes on without waiting for it."""
        with torch.cuda.stream(self._copies):  # none is no other stream
            if not self._on_cuda:
                return segments.to(self._device)
            filled = torch.zeros(SLICE, segments.shape[1], device=self._device)
            filled[: len(segments)].copy_(segments.pin_memory(), non_blocking=True)
            return filled

    def _wait_for(self, copied: Tensor) -> Tensor:
        """Have the network's stream wait for a copy, and keep its memory until the network has read it."""
        if self._copies is not None:
            working = torch.cuda.current_stream(self._device)
            working.wait_stream(self._copies)
            copied.record_stream(working)
        return copied


class OpenVinoEngine:
    """The log-mel in PyTorch (OpenVINO's Fourier transform is slower), all behind it in OpenVINO.

    Args:
        network: on the CPU, in evaluation mode.
        precision: `fp32`, or `bf16`, which is faster on a CPU that has instructions for it.
        threads: segments computed at the same time, a thread each.

    Raises:
        ImportError: OpenVINO is not installed.
        RuntimeError: it cannot take the network over.
    """

    name = "openvino"

    def __init__(self, network: TaggerNetwork, precision: str, threads: int) -> None:
        openvino = import_openvino()
        self.precision = precision
        self._log_mel = _traced(unfold_mel_scale(network.log_mel), torch.zeros(1, SEGMENT_SAMPLES))
        # Compiled for throughput: a stream is a thread with memory of its own. Pinned streams would hold on
        # to cores on which decoders run.
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = openvino.Core().compile_model(_graph_of(network), "CPU", options)
        self._mine = local()
        self._threads = threads
        # Its threads keep this engine for as long as the process lives (some 40 MB and 5 threads, with the
        # shipped network): of some 300 that were let go in one process, one brought it down (SIGSEGV).
        self._pool = ThreadPoolExecutor(threads, "engine", self._prepare_thread)

    def __call__(self, segments: FloatArray) -> FloatArray:
        """See Engine."""
        return self._share(self._embed_segments, segments)

    def embed_mels(self, mels: FloatArray) -> FloatArray:
        """See Engine."""
        return self._share(self._embed_mels, mels)

    def _share(self, work: Callable[[FloatArray], FloatArray], rows: FloatArray) -> FloatArray:
        """Rows -> their embeddings, as many to each thread."""
        shares = np.array_split(rows, min(self._threads, len(rows)))
        return np.concatenate(list(self._pool.map(work, shares)))

    def _prepare_thread(self) -> None:
        # Holds for this thread and for those that PyTorch sees for the first time after it.
        torch.set_num_threads(1)
        request = self._compiled.create_infer_request()
        self._mine.request = request
        self._mine.mel = request.get_input_tensor().data
        self._mine.embedding = request.get_output_tensor().data

    @torch.inference_mode()
    def _embed_segments(self, segments: FloatArray) -> FloatArray:
        # All log-mels first: by turns, each of the two finds the caches full of the other's (8 % slower).
        mels = [self._log_mel(segment[None])[0].numpy() for segment in torch.from_numpy(segments)]
        return self._embed_mels(mels)

    def _embed_mels(self, mels: Iterable[FloatArray]) -> FloatArray:
        return np.stack([self._embed(mel) for mel in mels])

    def _embed(self, mel: FloatArray) -> FloatArray:
        self._mine.mel[0] = mel
        self._mine.request.infer()
        embedding: FloatArray = self._mine.embedding[0].copy()  # the next call overwrites it
        return embedding


def import_openvino() -> Any:  # noqa: ANN401 - of a package that may be missing
    """OpenVINO without its telemetry, which would call its maker now, and write into the home folder.

    Raises:
        ImportError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # as if it were not installed
    import openvino

    return openvino


def choose_engine(
    network: TaggerNetwork, device: torch.device, engine: str = "auto", threads: int | None = None
) -> LocalEngine:
    """The engine asked for, or PyTorch, with a warning, where that one is missing, fails or disagrees.

    Args:
        network: on `device`, in evaluation mode.
        device: where it runs; OpenVINO runs on `cpu` only.
        engine: `torch`; `openvino` in bf16 where the CPU has instructions for it, else in fp32;
            `openvino-fp32`; `auto` takes `openvino` on a CPU and `torch` elsewhere.
        threads: of the CPU; none takes one for each core, at most `MAX_THREADS`. PyTorch's are set for the
            whole process, if told or with the engine `torch`.

    Raises:
        EngineError: there is no such engine, or not for this device.
    """
    if engine not in ENGINES:
        raise EngineError(f"no engine {engine!r}; choose one of: {', '.join(ENGINES)}")
    if threads is not None and threads < 1:
        raise EngineError(f"threads must be 1 or more, not {threads}")
    if device.type != "cpu" and engine.startswith("openvino"):
        raise EngineError(
            f"the engine {engine!r} runs on a CPU only; choose the device cpu, or the engine auto"
        )
    count = threads or min(cpu_count(), MAX_THREADS)
    if engine == "torch" or device.type != "cpu":
        return TorchEngine(network, device, count)
    precisions = ["fp32"] if engine == "openvino-fp32" or not has_bf16() else ["bf16", "fp32"]
    return first_that_agrees(
        [partial(OpenVinoEngine, network, precision, count) for precision in precisions],
        TorchEngine(network, device, threads),
        lambda embeddings: _scores(network, embeddings),
    )


def first_that_agrees(
    candidates: Iterable[Callable[[], LocalEngine]],
    reference: LocalEngine,
    scores: Callable[[FloatArray], FloatArray],
) -> LocalEngine:
    """The first engine that can be built and whose scores on the probe are the reference's, else that one."""
    segments = probe()
    expected = scores(reference(segments))
    for build in candidates:
        try:
            candidate = build()
            _check(candidate, scores(candidate(segments)), expected)
        except Exception as error:  # whatever a foreign engine raises, there is one that works
            logger.warning("an engine cannot be used: %s: %s", type(error).__name__, error)
        else:
            return candidate
    logger.warning("the network runs in PyTorch, which is slower")
    return reference


def probe() -> FloatArray:
    """Two fixed segments [2, SEGMENT_SAMPLES] in [-1, 1]: loud chords over a beat, and soft noise."""
    time_s = np.arange(SEGMENT_SAMPLES) / SAMPLE_RATE_HZ
    chord = sum(np.sin(2 * np.pi * pitch_hz * time_s) for pitch_hz in (220.0, 277.2, 329.6, 1318.5))
    beat = np.exp(-8 * (time_s % 0.5)) * np.sin(2 * np.pi * 60 * time_s)
    noise = np.random.default_rng(0).standard_normal(SEGMENT_SAMPLES)
    return np.stack([0.1 * chord + 0.4 * beat, 0.01 * noise]).astype(np.float32)


def has_bf16() -> bool:
    """Whether OpenVINO is there and this CPU computes in bfloat16 by instructions of its own."""
    try:
        openvino = import_openvino()
    except ImportError:
        return False
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _check(engine: Engine, scores: FloatArray, expected: FloatArray) -> None:
    off = float(np.abs(scores - expected).max())
    if not off <= TOLERANCE[engine.precision]:  # so that NaN disagrees, too
        raise EngineFailureError(
            f"the scores of {engine.name} in {engine.precision} are off by {off:.2g} on the probe, "
            f"and may be by {TOLERANCE[engine.precision]:g}"
        )


@torch.inference_mode()
def _scores(network: TaggerNetwork, embeddings: FloatArray) -> FloatArray:
    scores: FloatArray = network.classify(torch.from_numpy(embeddings)).sigmoid().numpy()
    return scores


class _FromMel(nn.Module):
    """The part of the trunk that OpenVINO computes."""

    def __init__(self, network: TaggerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel of segments [B, 96, T] -> embeddings [B, E]."""
        return self.network.embed_mel(mel)


def _graph_of(network: TaggerNetwork) -> Any:  # noqa: ANN401 - of a package that may be missing
    """The part behind the log-mel as OpenVINO's graph, for one segment: [1, 96, T] -> [1, E]."""
    with torch.no_grad():
        mel = network.log_mel(torch.zeros(1, SEGMENT_SAMPLES))
    return to_openvino(_FromMel(unfold_filters(network)), mel)


def to_openvino(module: nn.Module, example: Tensor) -> Any:  # noqa: ANN401 - of a package that may be missing
    """A module in evaluation mode as OpenVINO's graph, for inputs of just the example's shape."""
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    traced = _traced(module.eval(), example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_traced`
        # Not openvino.convert_model, which sends usage statistics over the network.
        manager = FrontEndManager()
        frontend = manager.load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=(example,))
        model = frontend.convert(frontend.load(decoder))
    model.reshape(list(example.shape))
    return model


def _traced(module: nn.Module, example: Tensor) -> Any:  # noqa: ANN401 - PyTorch does not type it
    """A module as TorchScript, which does not ask for the interpreter's lock at every step."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, but OpenVINO reads it ten times as fast
        return torch.jit.trace(module, example, check_trace=False)
