"""Where an integral over [0, 1] is sampled, and with which weights."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from errata.errors import ConfigError

Rule = Literal["left", "right", "midpoint", "trapezoid"]

# Where a norm follows the MLP (Gemma 2 and 3, OLMo 2), scaling its activations does nothing until they are almost zero,
# and evenly spaced nodes would miss all that happens. There they are spaced evenly in the logarithm over six decades.
DECADES = math.log(1e6)
UNMOVED = 0.05  # a halved layer that moves its block by less than this share of what silencing it does counts as so


def nodes(rule: Rule, steps: int) -> tuple[Tensor, Tensor]:
    """Where in [0, 1] the gradient is taken and with which weights, both [steps], float64.

    ``left`` is the rule of the authors' code (0, 1/20, ..., 19/20), ``right`` that of DEPN's formula.

    Raises:
        ConfigError: no such rule, or too few steps for it.
    """
    if rule not in get_args(Rule):
        raise ConfigError(f"There is no integration rule {rule!r}: choose one of {', '.join(get_args(Rule))}.")
    fewest = 2 if rule == "trapezoid" else 1
    if steps < fewest:
        raise ConfigError(f"{steps} steps are too few for the {rule} rule: give at least {fewest}.")
    weights = torch.full((steps,), 1 / steps, dtype=torch.float64)
    counted = torch.arange(steps, dtype=torch.float64)
    if rule == "trapezoid":
        weights = torch.full((steps,), 1 / (steps - 1), dtype=torch.float64)
        weights[0] /= 2
        weights[-1] /= 2
        return counted / (steps - 1), weights
    return (counted + {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]) / steps, weights


def spread_in_logarithm(places: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same integral over [0, 1] with s = (exp(κt) - 1)/(exp(κ) - 1) put for its variable: nodes crowd towards 0."""
    whole = math.expm1(DECADES)
    return torch.expm1(DECADES * places) / whole, weights * DECADES * torch.exp(DECADES * places) / whole
