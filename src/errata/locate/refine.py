"""From attributions to few neurons: a threshold in each prompt, and a share of the prompts that must agree.

The coarse set of a prompt holds the neurons above a share of its largest attribution; a fact's neurons are those of
more than a share p of its prompts (Dai et al., 2022, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOW, HIGH, STEP, MOVES = 2.0, 5.0, 0.05, 6
SLACK = 1e-6  # 0.7 of 10 prompts is 7 of them, whatever float32 makes of it


def coarse(scores: Tensor, threshold: float) -> Tensor:
    """Which entries of each row [prompts, neurons] are above so much of the row's largest; none where that is 0."""
    largest = scores.max(dim=1, keepdim=True).values
    return (scores > threshold * largest) & (scores > 0)


def shares(masks: Tensor) -> Tensor:
    """In what share of the rows [prompts, neurons] each entry is set, [neurons]."""
    return masks.float().mean(0)


def above(share: Tensor, p: float, *, reached: bool = False) -> Tensor:
    """Which shares exceed p, or with ``reached`` are at least p; a neuron of no prompt never counts."""
    return (share > 0) & (share >= p - SLACK if reached else share > p + SLACK)


def adjusted(
    found: Sequence[Tensor],
    p: float,
    *,
    low: float = LOW,
    high: float = HIGH,
    moves: int = MOVES,
    reached: bool = False,
) -> float:
    """The share p after the authors' schedule: moved by 0.05 until the facts have 2 to 5 neurons on average.

    Args:
        found: the shares of each fact's neurons, [neurons] each.
        p: where to begin. low, high: the average wanted. moves: at most so many. reached: as in :func:`above`.
    """
    for _ in range(moves):
        mean = float(torch.stack([above(share, p, reached=reached).sum() for share in found]).float().mean())
        moved = p + STEP if mean > high else p - STEP if mean < low else p
        if moved == p or not 0 <= moved < 1:
            break
        p = moved
    return p
