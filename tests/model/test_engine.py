"""The engines: agreement with PyTorch, rows on their own, threads, and the way back to PyTorch."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.bundle import load_bundle
from model.engine import (
    MAX_THREADS,
    SLICE,
    TOLERANCE,
    EngineError,
    LocalEngine,
    OpenVinoEngine,
    TorchEngine,
    choose_engine,
    first_that_agrees,
    has_bf16,
    probe,
)
from model.network import SEGMENT_SAMPLES, TaggerNetwork
from model.tagger import Tagger
from tests.conftest import CLIPS

CPU = torch.device("cpu")
ROW_TOLERANCE = 1e-4
PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not has_bf16(), reason="no bf16 here"))]


@pytest.fixture(scope="module")
def network() -> TaggerNetwork:
    return load_bundle()[1]


@pytest.fixture(scope="module")
def reference(network: TaggerNetwork) -> TorchEngine:
    return TorchEngine(network, CPU)


@pytest.fixture(scope="module", params=PRECISIONS)
def openvino(request: pytest.FixtureRequest, network: TaggerNetwork) -> OpenVinoEngine:
    return OpenVinoEngine(network, request.param, threads=2)


def test_openvino_calls_nobody_and_writes_nothing(tmp_path: Path) -> None:
    """Its telemetry is off in a CI, so this is none."""
    program = """
import socket
def refuse(*asked):
    raise SystemExit(f"asked for {asked}")
socket.getaddrinfo = refuse
from model.engine import import_openvino
import_openvino().Core()
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}

    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def segments() -> NDArray[np.float32]:
    """Segments of very different levels: [5, SEGMENT_SAMPLES]."""
    rng = np.random.default_rng(1)
    levels = np.array([0.0, 1e-4, 0.01, 0.1, 1.0])[:, None]
    return (levels * rng.standard_normal((5, SEGMENT_SAMPLES))).astype(np.float32)


def scores(network: TaggerNetwork, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = network.classify(torch.from_numpy(embeddings)).sigmoid().numpy()
    return found


@pytest.mark.parametrize("clip", ["sung_pop", "club_track", "orchestral_cue", "speech"])
def test_openvino_scores_real_music_as_pytorch_does(openvino: OpenVinoEngine, clip: str) -> None:
    path = CLIPS / f"{clip}.opus"
    bundle, network = load_bundle()
    expected = Tagger.load(device="cpu", engine="torch").tag(path)

    tagging = Tagger(bundle, network, CPU, openvino).tag(path)

    tolerance = TOLERANCE[openvino.precision]
    assert tagging.scores == pytest.approx(expected.scores, abs=tolerance)
    for window, as_expected in zip(tagging.windows, expected.windows, strict=True):
        assert window.scores == pytest.approx(as_expected.scores, abs=tolerance)


def test_a_row_does_not_depend_on_its_batch(
    openvino: OpenVinoEngine, network: TaggerNetwork, segments: NDArray[np.float32]
) -> None:
    alone = np.concatenate([openvino(row[None]) for row in segments])
    together = openvino(segments)
    turned = openvino(np.ascontiguousarray(segments[::-1]))[::-1]

    np.testing.assert_allclose(scores(network, alone), scores(network, together), atol=ROW_TOLERANCE)
    np.testing.assert_allclose(
        scores(network, np.ascontiguousarray(turned)), scores(network, together), atol=ROW_TOLERANCE
    )


@pytest.mark.parametrize("count", [1, SLICE, SLICE + 1])
def test_pytorch_takes_a_batch_in_slices_and_keeps_its_order(
    reference: TorchEngine, network: TaggerNetwork, count: int
) -> None:
    levels = np.linspace(0.01, 1.0, count, dtype=np.float32)[:, None]
    segments = np.ascontiguousarray(levels * np.resize(probe(), (count, SEGMENT_SAMPLES)))
    ends = [0, count - 1]

    together = reference(segments)

    assert together.shape == (count, network.embedding_size)
    alone = np.concatenate([reference(segments[[row]]) for row in ends])
    np.testing.assert_allclose(scores(network, together[ends]), scores(network, alone), atol=ROW_TOLERANCE)


def test_every_engine_goes_on_from_log_mels_as_from_the_samples(
    openvino: OpenVinoEngine, reference: TorchEngine, network: TaggerNetwork, segments: NDArray[np.float32]
) -> None:
    with torch.inference_mode():
        mels = network.log_mel(torch.from_numpy(segments)).numpy()

    for engine in (openvino, reference):
        embeddings = engine.embed_mels(mels)

        np.testing.assert_allclose(
            scores(network, embeddings), scores(network, engine(segments)), atol=ROW_TOLERANCE
        )


def test_threads_share_an_engine(openvino: OpenVinoEngine, segments: NDArray[np.float32]) -> None:
    alone = [openvino(row[None]) for row in segments]

    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(lambda index: openvino(segments[index % 5][None]), range(40)))

    for index, embedding in enumerate(shared):
        np.testing.assert_array_equal(embedding, alone[index % 5])


def test_the_probe_is_fixed_audio_in_range() -> None:
    assert probe().shape == (2, SEGMENT_SAMPLES)
    assert np.abs(probe()).max() <= 1.0
    np.testing.assert_array_equal(probe(), probe())


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_a_cpu_gets_openvino_at_the_best_precision_that_it_has(network: TaggerNetwork, engine: str) -> None:
    chosen = choose_engine(network, CPU, engine, threads=1)

    assert (chosen.name, chosen.precision) == ("openvino", "bf16" if has_bf16() else "fp32")


@pytest.mark.parametrize("engine", ["torch", "openvino-fp32"])
def test_an_engine_can_be_asked_for_by_name(engine: str) -> None:
    tagger = Tagger.load(device="cpu", engine=engine, threads=1)

    assert (tagger.engine, tagger.precision) == (engine.removesuffix("-fp32"), "fp32")


@pytest.mark.parametrize(("cores", "expected"), [(3, 3), (64, MAX_THREADS)])
def test_pytorch_takes_as_many_threads_as_the_other_engine_would(
    network: TaggerNetwork, monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
) -> None:
    monkeypatch.setattr("model.engine.cpu_count", lambda: cores)
    threads = torch.get_num_threads()
    try:
        choose_engine(network, CPU, "torch")

        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)


def test_a_missing_engine_gives_way_to_pytorch_with_a_warning(
    network: TaggerNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # how Python marks a module that cannot be imported

    chosen = choose_engine(network, CPU)

    assert chosen.name == "torch"
    assert "openvino" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_wrong_engine_gives_way_to_the_next_that_agrees(
    network: TaggerNetwork, reference: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    other = TaggerNetwork(network.tags, network.config).eval()

    def wrong() -> LocalEngine:
        return OpenVinoEngine(other, "fp32", threads=1)

    def right() -> LocalEngine:
        return OpenVinoEngine(network, "fp32", threads=1)

    chosen = first_that_agrees([wrong, right], reference, lambda embeddings: scores(network, embeddings))
    fallback = first_that_agrees([wrong], reference, lambda embeddings: scores(network, embeddings))

    assert chosen.name == "openvino"
    assert fallback is reference
    assert "off by" in caplog.text


def test_an_engine_that_answers_no_numbers_or_fails_gives_way_to_pytorch(
    network: TaggerNetwork, reference: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    broken = TaggerNetwork(network.tags, network.config).eval()
    with torch.no_grad():
        broken.mel_norm.weight.fill_(torch.nan)

    def no_numbers() -> LocalEngine:
        return OpenVinoEngine(broken, "fp32", threads=1)

    def impossible() -> LocalEngine:
        return OpenVinoEngine(network, "fp32", threads=-5)

    chosen = first_that_agrees(
        [no_numbers, impossible], reference, lambda embeddings: scores(network, embeddings)
    )

    assert chosen is reference
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    ("device", "engine", "threads", "message"),
    [
        ("cpu", "abacus", None, "openvino-fp32"),
        ("cuda", "openvino", None, "device cpu"),
        ("cpu", "torch", 0, "1 or more"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_choose(
    network: TaggerNetwork, device: str, engine: str, threads: int | None, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        choose_engine(network, torch.device(device), engine, threads)
