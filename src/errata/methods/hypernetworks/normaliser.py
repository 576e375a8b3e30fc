"""Running mean and variance of all rows ever seen, coordinate by coordinate: MEND's normaliser, and UltraEdit's state.

Statistics of two batches one after the other equal those of both together (Chan, Golub, LeVeque 1983).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-7


@dataclass(frozen=True)
class Normaliser:
    """Count, mean [w] and sum of squared deviations [w], float64, of rows of width w."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, width: int) -> Normaliser:
        """Of no row yet."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def seen(self, rows: Tensor) -> Normaliser:
        """With these rows [N, w] as well."""
        rows = rows.double().cpu()
        mean, n = rows.mean(0), len(rows)
        squares, shift, total = (rows - mean).square().sum(0), mean - self.mean, self.count + n
        return Normaliser(
            total,
            self.mean + shift * n / total,
            self.squares + squares + shift.square() * self.count * n / total,
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """The rows with mean 0 and variance 1 in each coordinate, as far as all that was seen goes."""
        deviation = (self.squares / max(1, self.count - 1)).sqrt().to(rows)
        return (rows - self.mean.to(rows)) / (deviation + EPSILON)

    def tensors(self) -> dict[str, Tensor]:
        """For a patch's state."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "squares": self.squares}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Normaliser:
        """The inverse of :meth:`tensors`."""
        return cls(int(tensors["count"]), tensors["mean"].double(), tensors["squares"].double())
