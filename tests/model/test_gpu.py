"""The CUDA path of PyTorch's engine: the CPU's scores, whatever the batch. Without a GPU they are skipped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.bundle import load_bundle
from model.engine import SLICE, TorchEngine, probe
from model.network import TaggerNetwork
from model.tagger import Tagger

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}


@pytest.fixture(scope="module")
def network() -> TaggerNetwork:
    return load_bundle()[1].to("cuda").eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("clip", ["sung_pop", "club_track", "orchestral_cue", "speech"])
def test_a_gpu_scores_real_music_as_the_cpu_does(
    network: TaggerNetwork, clips: dict[str, Path], clip: str, precision: str
) -> None:
    device = torch.device("cuda")
    engine = TorchEngine(network, device, precision=precision)
    expected = Tagger.load(device="cpu", engine="torch").tag(clips[clip])

    tagging = Tagger(load_bundle()[0], network, device, engine).tag(clips[clip])

    assert tagging.scores == pytest.approx(expected.scores, abs=TOLERANCE[precision])
    for window, as_expected in zip(tagging.windows, expected.windows, strict=True):
        assert window.scores == pytest.approx(as_expected.scores, abs=TOLERANCE[precision])


@pytest.mark.parametrize("count", [1, SLICE, SLICE + 1, 4 * SLICE])
def test_copying_ahead_of_the_network_changes_no_row(network: TaggerNetwork, count: int) -> None:
    engine = TorchEngine(network, torch.device("cuda"), precision="fp32")
    segments = levels_of_the_probe(count)
    alone = np.concatenate([engine(row[None]) for row in segments])

    for _ in range(5):  # a race would not show itself each time; it would show the levels of other rows
        np.testing.assert_allclose(engine(segments), alone, rtol=1e-2, atol=1e-2)


def test_auto_takes_the_gpu() -> None:
    tagger = Tagger.load()

    assert (tagger.device, tagger.engine, tagger.precision) == ("cuda", "torch", "fp32")


def levels_of_the_probe(count: int) -> NDArray[np.float32]:
    """So many segments, no two alike."""
    levels = np.linspace(0.1, 1.0, count, dtype=np.float32)[:, None]
    return np.ascontiguousarray(levels * np.resize(probe(), (count, probe().shape[1])))
