"""Consistency: windows heard badly are judged as they are heard well, and what is heard well stays."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.network import SEGMENT_S, TaggerNetwork
from model.training.consistency import (
    HeadRidge,
    JudgedWindows,
    _windows_around,
    fit_consistency,
    hear,
    weighted_products,
    weighted_ridge,
)
from model.training.embedding import embedder
from model.training.material import Material
from tests.model.material import UNKNOWN, material_of, network_of, radial_of

CPU = torch.device("cpu")


def material() -> Material:
    labels = np.array([[1.0, UNKNOWN], [0.0, UNKNOWN]] * 6, np.float32)
    return material_of(labels, np.full((len(labels), 29, 2), UNKNOWN, np.float16), seconds=17.0)


def with_opinions(network: TaggerNetwork) -> TaggerNetwork:
    """The same, its radial basis placed and speaking."""
    radial = radial_of(network)
    torch.nn.init.normal_(radial.centres)
    torch.nn.init.normal_(radial.out.weight)
    radial.width.fill_(10.0)
    radial.beside.copy_(torch.tensor([2.0, 0.1]))
    return network


@torch.no_grad()
def off_by(network: TaggerNetwork, target: TaggerNetwork, clips: Material) -> tuple[float, float]:
    """How far `network` is from what `target` says of windows as they are: on these, and on all others."""
    clean: list[float] = []
    others: list[float] = []
    rng = np.random.default_rng(5)
    embed = embedder(target, CPU, len(clips.clips))
    for index in range(len(clips.clips)):
        for number, part in enumerate(hear(target, embed, clips, index, rng)):
            said = network.classify(torch.from_numpy(part.windows)).detach().numpy()
            (others if number else clean).append(float(np.square(said - part.logits).mean()))
    return float(np.mean(clean)), float(np.mean(others))


@pytest.mark.parametrize("centres", [8, 0], ids=["radial basis", "none"])
def test_what_is_heard_badly_is_judged_as_what_is_heard_well(centres: int) -> None:
    clips = material()
    before, after = network_of(("a", "b"), centres), network_of(("a", "b"), centres)
    for network in (before, after):
        torch.manual_seed(1)
        torch.nn.init.normal_(network.head.straight.weight)
        if centres:
            with_opinions(network)

    fit_consistency(after, clips, seed=0)

    _, worse = off_by(before, before, clips)
    clean, better = off_by(after, before, clips)
    assert better < 0.5 * worse
    assert clean < 0.5 * worse


def test_it_is_the_same_for_the_same_seed_and_changes_the_last_layers_alone() -> None:
    clips = material()
    first, second, untouched = (with_opinions_of_seed(3) for _ in range(3))

    fit_consistency(first, clips, seed=0)
    fit_consistency(second, clips, seed=0)

    changed = {
        name
        for name, value in untouched.state_dict().items()
        if not torch.equal(value, first.state_dict()[name])
    }
    assert changed == {
        "head.out.weight",
        "head.straight.weight",
        "head.radial.out.weight",
        "head.radial.out.bias",
    }
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], atol=1e-4, rtol=1e-4)


def with_opinions_of_seed(seed: int) -> TaggerNetwork:
    network = network_of(("a", "b"))
    torch.manual_seed(seed)
    return with_opinions(network)


def test_a_window_teaches_only_the_tags_that_are_known_of_it() -> None:
    networks = [with_opinions_of_seed(3) for _ in range(2)]
    size = networks[0].embedding_size
    rng = np.random.default_rng(0)
    known = JudgedWindows(rng.normal(0, 1, (40, size)).astype(np.float32), rng.normal(0, 1, (40, 2)), 1.0)
    half_known = JudgedWindows(
        rng.normal(0, 1, (40, size)).astype(np.float32), np.array([[np.nan, 5.0]] * 40), 1.0
    )

    for network, heard in zip(networks, ([known], [known, half_known]), strict=True):
        ridge = HeadRidge(network)
        ridge.add(heard)
        ridge.teach()

    without, with_half = (network.head.straight.weight.detach() for network in networks)
    torch.testing.assert_close(with_half[0], without[0])
    assert not torch.allclose(with_half[1], without[1])


def test_the_ridge_finds_what_is_missing_and_minds_what_rows_count() -> None:
    rng = np.random.default_rng(0)
    inputs: NDArray[np.float64] = rng.normal(2.0, [1.0, 5.0, 0.0], (2000, 3))
    counts = np.where(np.arange(2000) < 1000, 1.0, 0.0)
    missing = np.where(counts > 0, 3.0 * inputs[:, 0] - inputs[:, 1] + 7.0, 1e3)
    rows = np.column_stack([inputs, missing, np.ones(2000)])
    parts = [weighted_products(rows[part], counts[part]) for part in (slice(700), slice(700, None))]

    weights, bias = weighted_ridge(np.sum(parts, 0), np.array([1.0, 2.0, 1.0]))

    scaled = inputs[0] * [1.0, 2.0, 1.0]
    assert weights[:2] == pytest.approx([3.0, -0.5], rel=0.02)
    assert scaled @ weights + bias == pytest.approx(missing[0], rel=0.02)


@pytest.mark.parametrize(
    ("start_s", "length_s", "windows", "expected"),
    [
        (0.0, 1, 5, [0]),
        (6.0, 1, 5, [0, 1]),
        (4.5, 1, 5, [0]),
        (12.0, 5, 5, [2]),
        (24.0, 5, 5, [4]),
        (28.0, 1, 5, [4]),
        (3.0, 5, 1, [0]),
    ],
)
def test_a_part_lies_within_these_windows(
    start_s: float, length_s: float, windows: int, expected: list[int]
) -> None:
    found = list(range(windows))[_windows_around(start_s, length_s, windows)]

    assert found == expected
    assert all(SEGMENT_S * window <= start_s for window in found)
