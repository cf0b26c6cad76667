"""The losses: masked binary cross-entropy on the tags, and distillation from the public taggers."""

import torch
from torch import Tensor
from torch.nn import functional


def masked_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """`BCEWithLogitsLoss`, element by element, averaged over the known cells: [B, K], [B, K] -> scalar.

    Targets lie in [0, 1]; NaN is unknown and adds neither loss nor gradient. With every cell known this is
    `torch.nn.BCEWithLogitsLoss()`; with none it is 0.
    """
    known = ~torch.isnan(targets)
    losses = functional.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0), reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)


def mix_targets(labels: Tensor, words: Tensor, trust: Tensor, applies: Tensor | None = None) -> Tensor:
    """Labels [B, K] and what words say [B, K], NaN unknown -> targets [B, K].

    Where both are known, the words make up a share `trust` [2, K] of the target, in its first row where the
    label is a no, in its second where it is a yes, as `applies` [B, K] tells: without, 0.5 and above. Where
    one is known, it is that one.
    """
    share = torch.where(labels >= 0.5 if applies is None else applies, trust[1], trust[0])
    both = (1 - share) * labels + share * words
    return torch.where(labels.isnan(), words, torch.where(words.isnan(), labels, both))


def masked_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over the known (not NaN) cells: [B, K], [B, K] -> scalar."""
    known = ~torch.isnan(targets)
    errors = (outputs - targets.nan_to_num(0.0)) ** 2
    return torch.where(known, errors, 0.0).sum() / known.sum().clamp_min(1)
