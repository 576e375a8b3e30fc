"""Methods that train on answers: one class, of which each is a sum of terms and some defaults.

What is trained is LoRA adapters (``peft``) on some layers, or one layer's MLP out-projection: ``trained`` chooses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeVar

from pydantic import Field
from torch import Tensor

from errata.datasets.detox import DetoxExample
from errata.lm.language_model import LanguageModel
from errata.methods.detox.base import DetoxMethod, WordedConfig
from errata.methods.detox.wording import Wording
from errata.methods.fine_tuning.adapters import Adapters, AdapterShape
from errata.methods.fine_tuning.lora import AdapterConfig, adapted_layers
from errata.methods.fine_tuning.objectives import Term, Weighted
from errata.methods.fine_tuning.training import minimise
from errata.methods.fine_tuning.weights import MatrixChanges, Weights
from errata.patch import Patch


class TunedConfig(AdapterConfig, WordedConfig):
    """Options of training on examples; layers are counted from 0."""

    trained: Literal["adapters", "matrix"] = Field(
        "adapters",
        description="LoRA adapters on the layers, or the MLP out-projection of the highest of them, densely.",
    )
    depth: float = Field(
        1.0, ge=0.0, le=1.0, description="The highest layer as a fraction of depth, where none are named."
    )
    span: int = Field(10, ge=1, description="How many layers are adapted, where none are named.")
    steps: int = Field(20, ge=1, le=10_000, description="Passes over the examples, at most.")
    stop_loss: float = Field(0.2, ge=0.0, description="Training ends where every example's loss is below this.")
    batch_size: int = Field(4, ge=1, description="Examples a step of Adam, where there are several.")

    def bound(self, rms: float) -> float | None:
        """How far an entry of the one matrix may go, given the root mean square of them all; None for any distance."""
        return None


T = TypeVar("T", bound=TunedConfig)


class Tuned(DetoxMethod[T]):
    """Subclass with the :meth:`terms` of the loss."""

    @abstractmethod
    def terms(self, lm: LanguageModel, examples: Sequence[DetoxExample], config: T, wording: Wording) -> Sequence[Term]:
        """What is asked of the answers.

        Raises:
            RequestError: an example lacks what the method needs.
        """

    def notes(self, terms: Sequence[Term]) -> dict[str, object]:
        """What the card remembers beside the losses."""
        return {}

    def solve(self, lm: LanguageModel, examples: Sequence[DetoxExample], config: T) -> Patch:
        """All examples in one training, in mini-batches."""
        wording, layers = config.wording(lm), self.layers(lm, config)
        terms = self.terms(lm, examples, config, wording)
        objective = Weighted(terms)
        weights: Weights
        constraint = None
        if config.trained == "matrix":
            weights = matrix = MatrixChanges(lm, layers[-1], 1)
            bound = config.bound(matrix.rms)
            constraint = None if bound is None else partial(Tensor.clamp_, min=-bound, max=bound)
        else:
            weights = adapters(lm, layers, config)
        (trained,) = minimise(lm, weights, objective, [len(examples)], config, constraint)
        notes = {
            "losses": trained.losses, "steps": trained.steps, "history": objective.history, **self.notes(terms)
        }  # fmt: skip
        return self.patch(
            lm, weights.updates(0), examples, config, wording=wording, settings={"layers": layers}, notes=notes
        )

    def layers(self, lm: LanguageModel, config: T) -> list[int]:
        """The layers it would train, in order."""
        layers = adapted_layers(lm, config)
        if config.trained == "matrix":
            lm.layer(layers[-1])  # raises the sentence that says why it cannot be edited
            return layers[-1:]
        return layers


def adapters(lm: LanguageModel, layers: Sequence[int], config: TunedConfig) -> Adapters:
    """LoRA adapters of the configured shape."""
    return Adapters(lm, layers, config.targets, AdapterShape(config.rank, config.alpha, config.dropout, config.seed))
