"""The network: its budget, its shapes, and that a row never depends on its batch."""

import io

import numpy as np
import pytest
import torch
import torchaudio
from torch.utils.flop_counter import FlopCounterMode

from model.bundle import load_bundle
from model.frontend import COMPRESSION, QUIET, LogMel, expand, level
from model.network import SEGMENT_SAMPLES, NetworkConfig, TaggerNetwork

MAX_PARAMETERS = 1_500_000
MAX_GMAC_PER_10_S = 0.5
MAX_BYTES = 6_000_000
WINDOW = 2 * SEGMENT_SAMPLES


@pytest.fixture(scope="module")
def network() -> TaggerNetwork:
    return load_bundle()[1]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_shipped_network_is_within_its_budget(network: TaggerNetwork) -> None:
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(noise(1, WINDOW))

    learnt = [value for name, value in network.state_dict().items() if not name.startswith("log_mel.")]
    assert sum(value.numel() for value in learnt) <= MAX_PARAMETERS
    assert counter.get_total_flops() / 2 / 1e9 <= MAX_GMAC_PER_10_S
    assert buffer.tell() <= MAX_BYTES


def test_logits_of_a_window_are_those_of_its_segments_mean(network: TaggerNetwork) -> None:
    windows = noise(2, WINDOW)

    with torch.no_grad():
        whole = network(windows)
        halves = torch.stack(
            [network.embed(windows[:, :SEGMENT_SAMPLES]), network.embed(windows[:, SEGMENT_SAMPLES:])]
        )
        parts = network.classify(halves.mean(0))

    assert whole.shape == (2, len(network.tags))
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)


def test_a_row_does_not_depend_on_its_batch(network: TaggerNetwork) -> None:
    segments = noise(5, SEGMENT_SAMPLES)
    segments[1] *= 50.0

    with torch.no_grad():
        alone = torch.cat([network.embed(row[None]) for row in segments])
        together = network.embed(segments)

    torch.testing.assert_close(alone, together, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(musical=False),
        NetworkConfig(texture=()),
        NetworkConfig(band_stride=4, mid=16, hidden=32),
        NetworkConfig(mid=8, features=12),
        NetworkConfig(mid=8, frozen=4, centres=16),
    ],
    ids=["texture only", "musical only", "small", "with features", "with radial basis functions"],
)
def test_branches_are_optional_and_the_configuration_survives_json(config: NetworkConfig) -> None:
    network = TaggerNetwork(("a", "b"), NetworkConfig.from_json(config.to_json())).eval()

    with torch.no_grad():
        logits = network(noise(1, WINDOW))

    assert network.config == config
    assert logits.shape == (1, 2)
    assert torch.isfinite(logits).all()


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    network = TaggerNetwork(("a", "b")).train()

    network(noise(4, WINDOW)).square().sum().backward()

    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == []


def test_frozen_convolutions_neither_learn_nor_move_their_norms() -> None:
    network = TaggerNetwork(("a",), NetworkConfig(mid=8, frozen=4, centres=4)).train()
    frozen = network.get_submodule("branches.0.frozen")
    before = {name: value.clone() for name, value in frozen.state_dict().items()}

    network(noise(4, WINDOW)).square().sum().backward()

    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    torch.testing.assert_close(frozen.state_dict(), before)


def test_log_mel_of_silence_is_zero_and_of_a_tone_peaks_in_its_band() -> None:
    log_mel = LogMel()
    time = torch.arange(SEGMENT_SAMPLES) / 16_000
    tone = 0.5 * torch.sin(2 * np.pi * 1000.0 * time)

    silence = log_mel(torch.zeros(1, SEGMENT_SAMPLES))
    mel = log_mel(tone[None])

    assert silence.shape == (1, 96, 313)
    assert silence.abs().max() == 0.0
    # Slaney's scale is linear below 1 kHz, 200/3 Hz a mel, and 45.245 mel wide up to 8 kHz: 1 kHz is mel 15.
    assert int(mel.mean(2).argmax()) == pytest.approx(15 / 45.245 * 97 - 1, abs=1)


def test_log_mel_is_the_stated_formula() -> None:
    audio = noise(1, 4000)
    mel_power = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=512, hop_length=256, n_mels=96, norm="slaney", mel_scale="slaney"
    )

    expected = torch.log10(1 + COMPRESSION * mel_power(audio))

    torch.testing.assert_close(LogMel()(audio), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decibels", [-20, -10, 0])
def test_a_quiet_segment_is_raised_by_at_most_20_db_and_a_loud_one_stays(decibels: int) -> None:
    plain, levelled = LogMel(), LogMel(levelled=True)
    just_quiet = noise(2, SEGMENT_SAMPLES) * torch.tensor([[1.0], [10.0]])
    power = expand(plain(just_quiet)).mean((1, 2), keepdim=True)[:1]
    quiet = just_quiet * (QUIET / power).sqrt()[:, 0] * torch.tensor([[10 ** (decibels / 20)], [1.0]])

    heard = levelled(quiet)

    assert expand(heard).mean((1, 2))[0] == pytest.approx(QUIET, rel=1e-3)
    torch.testing.assert_close(heard[1], plain(quiet)[1])
    whisper = levelled(quiet[:1] * 1e-3)
    torch.testing.assert_close(expand(whisper).mean(), expand(plain(quiet[:1] * 1e-2)).mean())


def test_training_levels_its_log_mels_as_the_network_does() -> None:
    quiet = 0.01 * noise(2, SEGMENT_SAMPLES)

    torch.testing.assert_close(level(LogMel()(quiet)), LogMel(levelled=True)(quiet), atol=1e-4, rtol=1e-4)
    assert TaggerNetwork(("a",)).log_mel.levelled


def test_embeddings_are_finite_at_any_level(network: TaggerNetwork) -> None:
    levels = torch.tensor([0.0, 1e-6, 1e-3, 1.0, 10.0])
    segments = noise(5, SEGMENT_SAMPLES) * levels[:, None]

    with torch.no_grad():
        embeddings = network.embed(segments)

    assert torch.isfinite(embeddings).all()
