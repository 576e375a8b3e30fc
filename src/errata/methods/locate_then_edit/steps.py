"""How a batch of shifts moves from one pass to the next: Adam's steps as published, or fewer and longer ones."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

MOMENTUM = 0.5
RETREAT = 0.5  # a step that went too far is taken again, from where it began, at this share of its length


class Stepper(Protocol):
    """Moves the rows of δ [n, d], whose gradient is filled in, each within its clamp."""

    def step(self, loss: Tensor, running: Tensor) -> None:
        """One step of the rows that still run, given each row's loss [n] where it stands; the others stay."""

    def finish(self, loss: Tensor, running: Tensor) -> Tensor:
        """Put each row that still runs after the last pass where it shall end; the loss of each there, [n]."""


class AdamSteps:
    """Adam with a state for each row, as in ROME and MEMIT; after each step ‖δ‖ is cut to the limit."""

    def __init__(self, delta: Tensor, limit: Tensor, learning_rate: float) -> None:
        self._delta, self._limit = delta, limit
        self._adam = torch.optim.Adam([delta], lr=learning_rate)

    def step(self, loss: Tensor, running: Tensor) -> None:
        """One step."""
        before = self._delta.detach().clone()
        self._adam.step()
        with torch.no_grad():
            _cut(self._delta, self._limit)
            stays = ~running.to(self._delta.device)
            self._delta[stays] = before[stays]

    def finish(self, loss: Tensor, running: Tensor) -> Tensor:
        """A row ends where it stands."""
        return loss


class NormalisedSteps:
    """Steps of a given length along each row's gradient, with a little momentum; each ends at its best place.

    A value has to travel about as far as its limit, for which Adam's steps of a fixed size need many passes. Each step
    is shorter than the one before. A step that made the loss a little worse is kept, since the next ones mostly gain
    more from there; one that left it worse than at the start went too far, and is taken again at half its length.

    Args:
        delta: [n, d], one problem a row.
        limit: [n, 1], the largest norm of each.
        size: length of the first step relative to the limit.
        decay: of each step's length relative to the one before.
    """

    def __init__(self, delta: Tensor, limit: Tensor, size: float, decay: float) -> None:
        self._delta, self._limit, self._decay = delta, limit, decay
        self._length = size * limit / decay  # of the last step: the first will be decayed to the size asked
        self._direction = torch.zeros_like(delta)
        self._first: Tensor | None = None  # the loss before any step, [n, 1]
        self._best = delta.detach().clone()
        self._best_loss = torch.full_like(limit, torch.inf)
        self._from, self._slope = self._best.clone(), self._direction.clone()  # where the last step began, its gradient

    @torch.no_grad()
    def step(self, loss: Tensor, running: Tensor) -> None:
        """One step."""
        if self._delta.grad is None:
            return
        loss, slope = loss[:, None].to(self._best_loss), _unit(self._delta.grad)
        self._note(loss)
        self._first = loss if self._first is None else self._first
        onwards = loss <= self._first
        self._from = torch.where(onwards, self._delta, self._from)
        self._slope = torch.where(onwards, slope, self._slope)
        moved = MOMENTUM * self._direction + (1.0 - MOMENTUM) * slope
        self._direction = torch.where(onwards, moved, self._slope)
        self._length = self._length * torch.where(onwards, self._decay, RETREAT)
        move = self._from - self._length * _unit(self._direction)
        _cut(move, self._limit)
        going = running.to(self._delta.device)[:, None]
        self._delta.copy_(torch.where(going, move, self._delta))

    @torch.no_grad()
    def finish(self, loss: Tensor, running: Tensor) -> Tensor:
        """A row ends at the best place it has seen; one that has stopped, where it stopped."""
        self._note(loss[:, None].to(self._best_loss))
        self._delta.copy_(torch.where(running.to(self._delta.device)[:, None], self._best, self._delta))
        return self._best_loss[:, 0]

    def _note(self, loss: Tensor) -> None:
        """Keep the rows that stand at their best place so far."""
        better = loss < self._best_loss
        self._best_loss = torch.where(better, loss, self._best_loss)
        self._best = torch.where(better, self._delta, self._best)


def _unit(rows: Tensor) -> Tensor:
    length = rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    return torch.div(rows, length)


@torch.no_grad()
def _cut(rows: Tensor, limit: Tensor) -> None:
    """Scale each row down to its limit, in place."""
    norm = rows.norm(dim=-1, keepdim=True)
    rows.mul_(torch.where(norm > limit, limit / norm, 1.0))
