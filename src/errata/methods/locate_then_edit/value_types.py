"""What the value optimisation is told and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from errata.lm.products import Precision
from errata.methods.locate_then_edit.store import KnownValue

Site = Literal["mlp", "block", "mlp and attention"]
Optimiser = Literal["adam", "normalised"]


@dataclass(frozen=True)
class ValueSettings:
    """Knobs of the optimisation; see the configurations for their meaning."""

    steps: int
    learning_rate: float
    weight_decay: float
    clamp: float
    kl_weight: float
    stop_loss: float
    optimiser: Optimiser = "adam"
    step_size: float = 0.8
    step_decay: float = 0.9
    stop_at_argmax: bool = False
    precision: Precision = "float32"


@dataclass(frozen=True)
class Values:
    """What the optimiser found, for n edits under c contexts.

    Attributes:
        delta: [n, d] float32, the shift of each.
        start: [n, d] float32, v0: the unshifted state at the bare prompt.
        keys: [n, c, m] float32, input of W at the subject in each context; [n, 0, m] where they were not kept.
        outputs: [n, c, d] float32, output of W there; [n, 0, d] where they were not kept.
        losses: [n], the last loss of each. steps: [n], how many passes each took.
    """

    delta: Tensor
    start: Tensor
    keys: Tensor
    outputs: Tensor
    losses: list[float]
    steps: list[int]

    @staticmethod
    def joined(parts: Sequence[Values], order: Sequence[int]) -> Values:
        """Chunks put together, back in the order in which the edits were asked (row i belongs to edit ``order[i]``)."""
        back = sorted(range(len(order)), key=order.__getitem__)
        losses = [x for part in parts for x in part.losses]
        steps = [x for part in parts for x in part.steps]
        return Values(
            delta=torch.cat([part.delta for part in parts])[back],
            start=torch.cat([part.start for part in parts])[back],
            keys=torch.cat([part.keys for part in parts])[back],
            outputs=torch.cat([part.outputs for part in parts])[back],
            losses=[losses[i] for i in back],
            steps=[steps[i] for i in back],
        )

    def known(self, i: int) -> KnownValue:
        """The value of edit i alone, as ``optimise_values(known=...)`` takes it."""
        return KnownValue(self.delta[i], self.start[i], self.losses[i], self.steps[i])

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for a :class:`ValueStore`."""
        return {
            "delta": self.delta, "start": self.start, "keys": self.keys, "outputs": self.outputs,
            "losses": torch.tensor(self.losses, dtype=torch.float64), "steps": torch.tensor(self.steps),
        }  # fmt: skip

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Values:
        """The inverse of :meth:`tensors`."""
        moved = {name: tensors[name].to(device) for name in ("delta", "start", "keys", "outputs")}
        return cls(**moved, losses=tensors["losses"].tolist(), steps=tensors["steps"].tolist())
