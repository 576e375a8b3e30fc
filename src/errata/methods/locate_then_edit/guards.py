"""What keeps a long sequence of edits from wearing a model down: changes of a step's targets or of its update.

Each is a pure function that any method of the family can use. The memory of earlier keys is in
:meth:`~errata.methods.locate_then_edit.solvers.Metric.remembering`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from errata.lm.language_model import LanguageModel
from errata.patch import Dense, Patch, originals
from errata.patch.updates import apply_together

EPSILON = 1e-8


def keep_largest(change: Tensor, weight: Tensor, share: float) -> Tensor:
    """RECT (Gu et al., EMNLP 2024): the entries whose relative size |ΔW / W| is largest, the rest zero.

    Args:
        change: ΔW, [d, m]. weight: W, [d, m].
        share: how many of the entries stay, as a fraction; ⌈share · d · m⌉ of them do.
    """
    size = (change / (weight.to(change) + EPSILON)).abs().flatten()
    kept = torch.topk(size, math.ceil(share * size.numel()), sorted=False).indices
    mask = torch.zeros_like(size, dtype=torch.bool)
    mask[kept] = True
    return change * mask.view_as(change)


def cap_spectrum(change: Tensor, weight: Tensor) -> Tensor:
    """PRUNE (Ma et al., ICLR 2025): singular values σ of ΔW above S, W's largest, become S + ln σ - ln S.

    The result belongs on the unedited weight. Two published comparisons add it to the weight that holds ΔW already,
    which doubles the change instead of restraining it.

    Args:
        change: the whole change since the unedited weight, [d, m] float64. weight: that weight, [d, m].
    """
    largest = float(torch.linalg.matrix_norm(weight.double(), ord=2))
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    capped = torch.where(values > largest, largest + torch.log(values.clamp(min=1e-300) / largest), values)
    restrained: Tensor = left @ (capped[:, None] * right)
    return restrained


def anchored(targets: Tensor, start: Tensor, anchor: float) -> Tensor:
    """NAS (arXiv 2602.02543): targets [n, d] of one norm; one that grew beyond twice the anchor is given up.

    Args:
        targets: z, [n, d]. start: the unedited states, [n, d], which stand in for targets that are given up.
        anchor: the norm.
    """
    norms = targets.norm(dim=-1, keepdim=True)
    return torch.where(norms > 2 * anchor, start, targets * (anchor / norms))


def capped_patch(lm: LanguageModel, patches: Sequence[Patch], *, method: str) -> Patch:
    """One patch in place of several that the model carries, its whole change under :func:`cap_spectrum`.

    Args:
        lm: the model, whether it carries those patches or not.
        patches: a finished sequence, in order.
        method: named in the card.
    """
    before = originals(lm)
    updates = []
    for name in dict.fromkeys(update.parameter for patch in patches for update in patch.updates):
        weight = before.get(name, lm.model.get_parameter(name).detach()).double()
        together = [update for patch in patches for update in patch.updates if update.parameter == name]
        updates.append(Dense(name, cap_spectrum(apply_together(weight, together) - weight, weight).float()))
    if len(patches) == 1:  # what the method kept for solving again stays true
        return replace(patches[0], updates=tuple(updates))
    first = patches[0].card
    edits = [edit for patch in patches for edit in patch.edits]
    return Patch.create(
        lm, updates, method=method, config=first.config, edits=edits, seeds=first.seeds, contexts=first.contexts,
        notes={"pruned": len(patches)}, fingerprint=first.base.fingerprint,
    )  # fmt: skip
