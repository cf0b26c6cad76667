"""Radial basis functions: what they compute, what they are fitted to, and that the fit carries over."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.network import RadialBasis, TaggerNetwork
from model.training.cache import CLIP_S
from model.training.corpus import SEPARATOR
from model.training.radial import LABEL, fit_radial, frozen_windows, targets_of_windows
from model.training.words import OPINION
from tests.model.material import UNKNOWN, material_of, network_of, radial_of

CPU = torch.device("cpu")


def rest_of(network: TaggerNetwork, embeddings: Tensor) -> Tensor:
    """The logits of the rest of the head [B, K]."""
    return network.head.logits_and_features(embeddings[:, network.head.frozen_size :])[0]


def test_they_are_gaussians_round_the_centres_and_a_line() -> None:
    radial = RadialBasis(2, 2, 1)
    radial.load_state_dict(
        {
            "mean": torch.tensor([1.0, 0.0]),
            "deviation": torch.tensor([2.0, 1.0]),
            "centres": torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
            "width": torch.tensor(2.0),
            "beside": torch.ones(1),
            "out.weight": torch.tensor([[3.0, 5.0, 0.1, 0.2]]),
            "out.bias": torch.tensor([0.5]),
        }
    )

    logit = radial(torch.tensor([[3.0, 2.0]]))  # standardised (1, 2), at distances sqrt(5) and 2

    expected = 3 * np.exp(-5 / 4) + 5 * np.exp(-4 / 4) + 0.1 * 1 + 0.2 * 2 + 0.5
    assert logit.item() == pytest.approx(expected, rel=1e-5)


def test_far_from_everything_only_the_line_is_left() -> None:
    radial = RadialBasis(3, 4, 2)
    torch.nn.init.normal_(radial.out.weight)
    far = torch.full((1, 3), 1e4)

    logits = radial(far)

    torch.testing.assert_close(logits, far @ radial.out.weight[:, 4:].T)


def test_until_they_are_fitted_they_add_nothing_and_they_never_learn_by_gradient() -> None:
    network = network_of(("a", "b"))
    embeddings = torch.randn(3, network.embedding_size)

    torch.testing.assert_close(network.classify(embeddings), rest_of(network, embeddings))
    assert not any(p.requires_grad for p in radial_of(network).parameters())


def test_beside_them_the_rest_counts_little_where_words_are_trusted_and_else_twice() -> None:
    labels = np.array([[i % 2, 1 - i % 2] for i in range(6)], np.float32)
    words = np.zeros((6, CLIP_S, 2), np.float16)
    network = network_of(("vocal", "dance"))
    embeddings = torch.randn(3, network.embedding_size)

    fit_radial(network, material_of(labels, words), seed=0)

    frozen = embeddings[:, : network.head.frozen_size]
    expected = torch.tensor([2.0, 0.1]) * rest_of(network, embeddings) + radial_of(network)(frozen)
    torch.testing.assert_close(network.classify(embeddings), expected)


@pytest.mark.parametrize("centres", [8, 64], ids=["found among many windows", "drawn from few"])
def test_the_fit_tells_clips_apart_that_it_never_met(centres: int) -> None:
    labels = np.array([[i % 2, 1 - i % 2] for i in range(12)], np.float32)
    words = np.full((12, CLIP_S, 2), UNKNOWN, np.float16)
    network = network_of(("beat", "drone"), centres)

    fit_radial(network, material_of(labels[:8], words[:8]), seed=0)

    heard = frozen_windows(network, material_of(labels, words), CPU)
    unseen = [(index, windows) for index, windows in heard if index >= 8]
    for index, windows in unseen:
        beats, drones = radial_of(network)(torch.from_numpy(windows)).mean(0)
        assert (beats > drones) == bool(labels[index, 0])


@pytest.mark.parametrize("no_music", ["noise", SEPARATOR.join(("field", "Debian package krank"))])
def test_what_is_no_music_counts_more_than_other_labels(no_music: str) -> None:
    material = material_of(np.zeros((2, 1), np.float32), np.full((2, CLIP_S, 1), UNKNOWN, np.float16))
    material.clips[0] = replace(material.clips[0], source=no_music)

    noise, other = (targets_of_windows(material, index, 1, trust=np.zeros((2, 1))).item() for index in (0, 1))

    assert noise < other < 0


def test_speech_says_nothing_of_vocal_and_is_no_example_of_another_tag() -> None:
    labels = np.array([[0, i % 2] for i in range(8)], np.float32)
    material = material_of(labels, np.full((8, CLIP_S, 2), UNKNOWN, np.float16))
    for index, clip in enumerate(material.clips):
        material.clips[index] = replace(clip, source="speech")
    network = network_of(("vocal", "beat"))

    fit_radial(network, material, seed=0)

    vocal, other = radial_of(network).out.weight.abs().amax(1)
    assert vocal == 0 < other


def test_what_words_say_comes_out_as_a_logit_and_a_tag_that_nobody_knows_as_none() -> None:
    labels = np.full((6, 2), UNKNOWN, np.float32)
    words = np.full((6, CLIP_S, 2), UNKNOWN, np.float16)
    words[:, :, 0] = 0.75
    network = network_of(("vocal", "anything"))
    material = material_of(labels, words)

    fit_radial(network, material, seed=0)

    windows = torch.from_numpy(np.concatenate([w for _, w in frozen_windows(network, material, CPU)]))
    logits = radial_of(network)(windows)
    scale, bias = OPINION["vocal"]
    torch.testing.assert_close(logits[:, 0], torch.full((len(windows),), scale * 0.75 + bias))
    torch.testing.assert_close(logits[:, 1], torch.zeros(len(windows)))


@pytest.mark.parametrize(
    ("label", "word", "target"),
    [
        (1.0, 0.5, 0.75 * LABEL + 0.25 * 0.5),
        (0.0, 0.5, -0.75 * LABEL + 0.25 * 0.5),
        (UNKNOWN, 0.5, 0.5),
        (1.0, UNKNOWN, LABEL),
        (UNKNOWN, UNKNOWN, UNKNOWN),
    ],
    ids=["both, yes", "both, no", "words alone", "a label alone", "neither"],
)
def test_labels_and_words_are_weighed_against_each_other(label: float, word: float, target: float) -> None:
    words = np.full((1, CLIP_S, 1), word, np.float16)
    material = material_of(np.array([[label]], np.float32), words)

    targets = targets_of_windows(material, 0, 2, trust=np.full((2, 1), 0.25))

    np.testing.assert_allclose(targets, [[target], [target]], rtol=1e-3)


def test_a_window_is_told_what_the_teachers_said_of_its_own_seconds() -> None:
    words = np.arange(CLIP_S, dtype=np.float16)[None, :, None].copy()
    words[0, 27:] = UNKNOWN
    material = material_of(np.full((1, 1), UNKNOWN, np.float32), words, seconds=27.0)

    targets = targets_of_windows(material, 0, 5, trust=np.zeros((2, 1)))

    # Seconds 0-9, 5-14, 10-19 and 15-24; the last window ends with the clip: 19-26 are known.
    assert targets[:, 0] == pytest.approx([4.5, 9.5, 14.5, 19.5, 22.5], rel=1e-3)
