"""How far a judge agrees with people: accuracy, Cohen's kappa, and who is taken for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from errata.evaluation.intervals import RESAMPLES, Estimate, proportion


@dataclass(frozen=True)
class Agreement:
    """Accuracy with its exact interval, kappa with a bootstrap interval, and counts by (people's label, judge's)."""

    accuracy: Estimate
    kappa: Estimate
    confusion: dict[tuple[str, str], int]


def agreement(people: Sequence[str], judged: Sequence[str], *, seed: int = 0) -> Agreement:
    """Compare two labellings of the same texts.

    Raises:
        ValueError: they are not of one length.
    """
    pairs = list(zip(people, judged, strict=True))
    names = sorted({name for pair in pairs for name in pair})
    table = Counter(pairs)
    same = sum(count for (one, other), count in table.items() if one == other)
    counts = np.array([[table[one, other] for other in names] for one in names], dtype=np.float64)
    return Agreement(proportion(same, len(pairs)), _kappa_estimate(counts, seed), dict(table))


def cohens_kappa(counts: np.ndarray) -> float:
    """Cohen's kappa (1960) of a square table of counts; NaN where chance alone would agree always."""
    total = counts.sum()
    if not total:
        return float("nan")
    observed = np.trace(counts) / total
    expected = float((counts.sum(0) * counts.sum(1)).sum()) / total**2
    return float("nan") if expected == 1 else float((observed - expected) / (1 - expected))


def _kappa_estimate(counts: np.ndarray, seed: int) -> Estimate:
    n, value = int(counts.sum()), cohens_kappa(counts)
    if not n or value != value:
        return Estimate(value, float("nan"), float("nan"), n)
    # Resampling texts is drawing the cells of the table anew.
    drawn = np.random.default_rng(seed).multinomial(n, counts.ravel() / n, size=RESAMPLES)
    resampled = np.array([cohens_kappa(row.reshape(counts.shape).astype(np.float64)) for row in drawn])
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Estimate(value, min(float(low), value), max(float(high), value), n)
