"""Attributions whose integrals add up: more steps where, and only where, the first ones were too few.

The effect of some layers (often the first) falls next to zero, between two nodes. A layer's attributions must sum to
what silencing it does, so such a layer is known by its sum; it alone is integrated again, for the queries it failed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from errata.errors import ConfigError
from errata.lm import LanguageModel
from errata.locate.attribution import Attributions, Quantity, Query, attribute
from errata.locate.integral import Rule

FINER = 4  # times as many steps each time
ROUNDS = 2  # so at most 16 times as many
SMALLEST = 1e-6  # of an effect: where no layer does anything there is nothing to miss


def attribute_within(
    lm: LanguageModel,
    asked: Sequence[Query],
    *,
    tolerance: float | None,
    layers: Sequence[int] | None = None,
    of: Quantity = "probability",
    steps: int = 20,
    rule: Rule = "midpoint",
) -> Attributions:
    """As :func:`~errata.locate.attribution.attribute`, with up to 16 times the steps where a sum is off.

    Args:
        lm, asked, layers, of, steps, rule: as there.
        tolerance: how far a layer's sum may be from what silencing it does, as a share of the largest effect that any
            layer has on that query; None never asks for more steps.

    Raises:
        ConfigError: the tolerance is not above 0. And all that ``attribute`` raises.
    """
    if tolerance is not None and not tolerance > 0:
        raise ConfigError(
            f"The tolerance {tolerance} can never be met: give more than 0, or None for no further steps."
        )
    found = attribute(lm, asked, layers=layers, of=of, steps=steps, rule=rule)
    if tolerance is None:
        return found
    allowed = tolerance * (found.clean[:, None] - found.zeroed).abs().amax(1, keepdim=True).clamp(min=SMALLEST)
    for finer in range(1, ROUNDS + 1):
        off = found.error.abs() > allowed
        scores = list(found.scores)
        for at in [int(at) for at in off.any(0).nonzero()[:, 0]]:
            rows = off[:, at].nonzero()[:, 0]
            again = attribute(
                lm,
                [asked[int(row)] for row in rows],
                layers=[found.layers[at]],
                of=of,
                steps=steps * FINER**finer,
                rule=rule,
            )
            scores[at] = scores[at].index_copy(0, rows, again.scores[0])
        found = replace(found, scores=tuple(scores))
    return found


def worst_share(found: Attributions) -> float:
    """The median over queries of the worst layer's error, as a share of the largest effect that a layer has."""
    whole = (found.clean[:, None] - found.zeroed).abs().double().amax(1).clamp(min=SMALLEST)
    return float(torch.median(found.error.abs().amax(1) / whole))
