"""What is trained: a change of one matrix, for one problem or for several independent ones side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from errata.lm.language_model import LanguageModel
from errata.patch import Dense, Update


class Weights(Protocol):
    """Tensors that start at "no change", and how the model comes to compute with them.

    Attributes:
        first: the lowest layer they act in.
    """

    first: int

    def installed(self) -> AbstractContextManager[None]:
        """Within the block the model computes with the tensors, which exist from its beginning."""

    def assign(self, owners: Sequence[int]) -> None:
        """Say to which problem each row of the next pass belongs; rows of one problem stand together."""

    def tensors(self, problem: int) -> list[Tensor]:
        """The leaves that are trained for one problem."""

    def updates(self, problem: int) -> list[Update]:
        """What was learnt for it."""


class MatrixChanges:
    """A dense change of one layer's MLP out-projection W, one for each problem; its bias stays.

    The weight itself is never written. A hook adds ``change · key`` to W's output, and the change is kept in float32
    (float64 for such a model) whatever the model's type: steps of 5e-4 would be rounded away in bfloat16. What is
    added is the part of the change that the rounded sum W + change will hold, so that training sees what the patch
    will do; the gradient passes through the rounding as if it were not there.
    """

    def __init__(self, lm: LanguageModel, layer: int, problems: int) -> None:
        self.first = layer
        self._name, self._module = lm.weight_name(layer), lm.out_projection(layer)
        self._weight: Tensor = lm.model.get_parameter(self._name).detach()
        self._transposed, self._problems = lm.layer(layer).transposed, problems
        self._changes: list[Tensor] = []
        self._owners: list[int] = []

    @property
    def rms(self) -> float:
        """The root mean square of W's entries."""
        return float(self._weight.to(self._dtype).square().mean().sqrt())

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self._weight.dtype, torch.float32)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """See :class:`Weights`."""
        self._changes = [
            torch.zeros_like(self._weight, dtype=self._dtype).requires_grad_() for _ in range(self._problems)
        ]
        handle = self._module.register_forward_hook(self._add)
        try:
            yield
        finally:
            handle.remove()

    def assign(self, owners: Sequence[int]) -> None:
        """See :class:`Weights`."""
        self._owners = list(owners)

    def tensors(self, problem: int) -> list[Tensor]:
        """The one matrix, as W is stored."""
        return [self._changes[problem]]

    def updates(self, problem: int) -> list[Update]:
        """One dense update."""
        return [Dense(self._name, self._changes[problem].detach())]

    def _add(self, _: nn.Module, given: tuple[Any, ...], result: Tensor) -> Tensor:
        problems = list(dict.fromkeys(self._owners))
        if len(problems) == 1:  # whose rows may be more than its items: an objective may compare several of each
            shift = given[0].to(self._dtype) @ self._held(problems[0])
            together: Tensor = result.to(self._dtype) + shift.view_as(result)
            return together.to(result.dtype)
        keys = given[0].reshape(len(self._owners), -1, given[0].shape[-1]).to(self._dtype)  # [rows, columns, m]
        parts = keys.split([self._owners.count(problem) for problem in problems])
        shifts = [part @ self._held(problem) for problem, part in zip(problems, parts, strict=True)]
        return (result.to(self._dtype) + torch.cat(shifts).view_as(result)).to(result.dtype)

    def _held(self, problem: int) -> Tensor:
        """The part of a change that the weight's type holds, as [m, d]."""
        change = self._changes[problem]
        if self._weight.dtype != self._dtype:
            with torch.no_grad():
                wide = self._weight.to(self._dtype)
                lost = (wide + change).to(self._weight.dtype).to(self._dtype) - wide - change
            change = change + lost
        return change if self._transposed else change.T
