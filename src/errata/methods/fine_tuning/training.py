"""The one loop of the family: Adam on the mean loss of mini-batches, until every edit is learnt.

Several problems may be trained side by side: each has weights and an Adam state of its own, its rows share the passes,
and it leaves as soon as it is done. One problem with many examples is training on a set of edits; many problems with
one example each are many edits, each as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import NumericalError
from errata.lm.activations import frozen
from errata.lm.language_model import LanguageModel
from errata.methods.fine_tuning.config import TrainingConfig
from errata.methods.fine_tuning.examples import Example
from errata.methods.fine_tuning.objectives import Likelihood, Objective
from errata.methods.fine_tuning.passes import Passes
from errata.methods.fine_tuning.weights import Weights
from errata.progress import task
from errata.records import Edit

Constraint = Callable[[Tensor], object]


@dataclass(frozen=True)
class Trained:
    """How a problem went.

    Attributes:
        losses: of each of its examples, at the last pass that saw it.
        steps: passes over its examples.
    """

    losses: list[float]
    steps: int


def train(
    lm: LanguageModel,
    weights: Weights,
    problems: Sequence[Sequence[Example]],
    config: TrainingConfig,
    constraint: Constraint | None = None,
) -> list[Trained]:
    """Train the weights of each problem on its examples; the model's own are not touched.

    Args:
        lm: the model.
        weights: what is trained; holds the result.
        problems: the examples of each.
        config: how long and how fast.
        constraint: changes a trained tensor in place after each step, so that it is where it may be.

    Raises:
        NumericalError: a loss, or what was learnt, is not finite.
    """
    examples = [example for group in problems for example in group]
    return minimise(lm, weights, Likelihood(examples), [len(group) for group in problems], config, constraint)


def minimise(
    lm: LanguageModel,
    weights: Weights,
    objective: Objective,
    sizes: Sequence[int],
    config: TrainingConfig,
    constraint: Constraint | None = None,
) -> list[Trained]:
    """As :func:`train`, for any objective.

    Args:
        lm: the model.
        weights: what is trained; holds the result.
        objective: what is minimised; its items are those of the first problem, then those of the second, and so on.
        sizes: how many items each problem has.
        config: how long and how fast.
        constraint: changes a trained tensor in place after each step.

    Raises:
        NumericalError: a loss, or what was learnt, is not finite.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        frozen(lm.model),
        task(f"Training on {sum(sizes)} request(s)", total=config.steps) as bar,
        ExitStack() as stack,
    ):
        passes = Passes(lm, objective.rows, weights.first)  # on the model as it is, before anything is put into it
        with torch.no_grad():
            objective.prepare(passes)
        stack.enter_context(weights.installed())
        run = _Run(passes, weights, objective, sizes, config, constraint)
        for _ in range(config.steps):
            run.epoch()
            bar.advance()
            if not run.live:
                break
        run.check_learnt()
    return [Trained(losses, steps) for losses, steps in zip(run.losses, run.steps, strict=True)]


def edit_notes(edits: Sequence[Edit], losses: Sequence[float], steps: Sequence[int]) -> dict[str, Any]:
    """What a patch's card keeps of how each edit went."""
    return {
        "edits": [
            {"edit_id": edit.edit_id, "loss": loss, "steps": count}
            for edit, loss, count in zip(edits, losses, steps, strict=True)
        ]
    }


class _Run:
    def __init__(
        self,
        passes: Passes,
        weights: Weights,
        objective: Objective,
        sizes: Sequence[int],
        config: TrainingConfig,
        constraint: Constraint | None,
    ) -> None:
        self._passes, self._objective = passes, objective
        self.weights, self.config, self.constraint = weights, config, constraint
        self.losses = [[torch.inf] * size for size in sizes]
        self.steps = [0] * len(sizes)
        self.live = list(range(len(sizes)))
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self._offset: list[int] = starts[:-1]
        leaves = [tensor for problem in self.live for tensor in weights.tensors(problem)]
        self._adam = torch.optim.Adam(leaves, lr=config.learning_rate, weight_decay=config.weight_decay)
        self._order = torch.Generator().manual_seed(config.seed)

    def epoch(self) -> None:
        """One pass over all examples of the problems that are not done, a mini-batch of each at a time."""
        order = {p: torch.randperm(len(self.losses[p]), generator=self._order).tolist() for p in self.live}
        size = self.config.batch_size
        for at in range(0, max(map(len, order.values())), size):
            self._step([(p, i) for p in self.live for i in order[p][at : at + size]])
        for p in self.live:
            self.steps[p] += 1
        self.live = [p for p in self.live if max(self.losses[p]) >= self.config.stop_loss]

    def _step(self, rows: list[tuple[int, int]]) -> None:
        self.weights.assign([p for p, _ in rows])
        losses = self._objective.losses(self._passes, [self._offset[p] + i for p, i in rows])
        for (p, i), loss in zip(rows, losses.tolist(), strict=True):
            self.losses[p][i] = loss
        if not bool(torch.isfinite(losses).all()):
            raise NumericalError(_sentence("a loss"))
        open_rows: dict[int, list[int]] = {}
        for place, (p, _) in enumerate(rows):
            open_rows.setdefault(p, []).append(place)
        # A mini-batch that is learnt already is left alone, and with it Adam's momentum.
        moving = {
            p: places
            for p, places in open_rows.items()
            if any(self.losses[p][rows[place][1]] >= self.config.stop_loss for place in places)
        }
        if not moving:
            return
        # Summed over problems, which share no weight: each one's gradient is that of its own mean loss.
        total = torch.stack([losses[places].mean() for places in moving.values()]).sum()
        leaves = [tensor for p in moving for tensor in self.weights.tensors(p)]
        self._adam.zero_grad(set_to_none=True)  # Adam passes over tensors without a gradient
        for leaf, gradient in zip(leaves, torch.autograd.grad(total, leaves), strict=True):
            leaf.grad = gradient
        self._adam.step()
        if self.constraint is not None:
            with torch.no_grad():
                for leaf in leaves:
                    self.constraint(leaf)

    def check_learnt(self) -> None:
        """Refuse what is not finite: the last step has no loss after it to show it."""
        self._adam.zero_grad(set_to_none=True)
        tensors = [tensor for p in range(len(self.losses)) for tensor in self.weights.tensors(p)]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise NumericalError(_sentence("a trained weight"))


def _sentence(what: str) -> str:
    return f"Training gave {what} that is not a number: load the model in float32, or lower the learning rate."
