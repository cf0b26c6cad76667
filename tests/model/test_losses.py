"""The loss: binary cross-entropy on logits, each tag a yes/no question of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.training.losses import masked_bce, masked_mse, mix_targets

LOGITS = torch.tensor([[1.9072, 1.1079, 1.4906], [-0.6584, -0.0512, 0.7608], [-0.0614, 0.6583, 0.1095]])
TARGETS = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
GOLDEN = 0.8000


def by_hand(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The sum as it stands in a textbook, in double precision."""
    p = 1 / (1 + torch.exp(-logits.double()))
    return float(-(targets * p.log() + (1 - targets) * (1 - p).log()).mean())


def test_golden_value_three_ways() -> None:
    assert by_hand(LOGITS, TARGETS) == pytest.approx(GOLDEN, abs=5e-5)
    assert torch.nn.BCELoss()(LOGITS.sigmoid(), TARGETS).item() == pytest.approx(GOLDEN, abs=5e-5)
    assert torch.nn.BCEWithLogitsLoss()(LOGITS, TARGETS).item() == pytest.approx(GOLDEN, abs=5e-5)


def test_masked_form_equals_the_plain_one_when_all_is_known() -> None:
    expected = torch.nn.BCEWithLogitsLoss()(LOGITS, TARGETS)

    assert torch.equal(masked_bce(LOGITS, TARGETS), expected)


def test_unknown_cells_add_neither_loss_nor_gradient() -> None:
    targets = TARGETS.clone()
    targets[0, 0] = targets[2, 1] = float("nan")
    known = ~targets.isnan()
    logits = LOGITS.clone().requires_grad_()
    expected = torch.nn.BCEWithLogitsLoss()(LOGITS[known], TARGETS[known])

    loss = masked_bce(logits, targets)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad is not None
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).all()


def test_loss_of_unknown_cells_does_not_depend_on_their_logits() -> None:
    targets = TARGETS.clone()
    targets[1] = float("nan")
    wild = LOGITS.clone()
    wild[1] = torch.tensor([1e4, -1e4, 0.0])

    assert torch.equal(masked_bce(wild, targets), masked_bce(LOGITS, targets))


def test_nothing_known_is_no_loss() -> None:
    targets = torch.full((2, 3), float("nan"))
    logits = torch.zeros(2, 3, requires_grad=True)

    loss = masked_bce(logits, targets)
    loss.backward()

    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays("float32", (4, 3), elements=st.floats(-80, 80, width=32)),
    hnp.arrays("float32", (4, 3), elements=st.floats(0, 1, width=32)),
)
def test_soft_targets_are_targets_and_the_loss_is_finite(logits: object, targets: object) -> None:
    z, y = torch.tensor(logits), torch.tensor(targets)

    loss = masked_bce(z, y)

    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(torch.nn.BCEWithLogitsLoss()(z, y).item(), rel=1e-5, abs=1e-6)


def test_distillation_counts_known_cells_only() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    targets = torch.tensor([[0.0, float("nan")], [float("nan"), 2.0]])

    assert masked_mse(outputs, targets).item() == pytest.approx((1.0 + 4.0) / 2)
    assert masked_mse(outputs, torch.full((2, 2), float("nan"))).item() == 0.0


def test_targets_mix_labels_and_words_where_both_are_known_and_take_the_one_that_is() -> None:
    nan = float("nan")
    labels = torch.tensor([[1.0, nan], [0.0, 1.0], [nan, nan]])
    words = torch.tensor([[0.2, 0.6], [nan, 0.5], [0.7, nan]])

    targets = mix_targets(labels, words, torch.tensor([[0.25, 0.9], [0.25, 0.9]]))

    expected = torch.tensor([[0.8, 0.6], [0.0, 0.55], [0.7, nan]])
    torch.testing.assert_close(targets, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("label", "target"), [(0.0, 0.9 * 0.0 + 0.1 * 0.5), (1.0, 0.2 * 1.0 + 0.8 * 0.5)], ids=["no", "yes"]
)
def test_words_count_otherwise_beside_a_no_than_beside_a_yes(label: float, target: float) -> None:
    trust = torch.tensor([[0.1], [0.8]])

    mixed = mix_targets(torch.tensor([[label]]), torch.tensor([[0.5]]), trust)

    assert mixed.item() == pytest.approx(target)


def test_a_soft_label_of_one_half_and_above_counts_as_a_yes() -> None:
    labels = torch.tensor([[0.5, 0.4]])

    mixed = mix_targets(labels, torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))

    torch.testing.assert_close(mixed, torch.tensor([[0.0, 0.4]]))
