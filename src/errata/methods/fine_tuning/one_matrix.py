"""FT, FT-L and FT-M: gradient descent on the MLP out-projection of one layer.

FT: Meng et al. (arXiv 2202.05262), as the baseline of ROME. FT-L: Zhu et al. (arXiv 2012.00363): no entry may leave a
small interval around its original value. FT-M: Zhang et al. (arXiv 2401.01286): the likelihood of the whole target.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field

from errata.lm.language_model import LanguageModel
from errata.methods.base import Method, MethodInfo
from errata.methods.fine_tuning.config import TrainingConfig
from errata.methods.fine_tuning.examples import Objective, distinct, examples_of
from errata.methods.fine_tuning.passes import ROWS_AT_ONCE
from errata.methods.fine_tuning.training import edit_notes, train
from errata.methods.fine_tuning.weights import MatrixChanges
from errata.methods.layers import layer_at
from errata.patch import Patch, Update
from errata.records import Edit

SIDE_BY_SIDE_BYTES = 1 << 28  # for changes, gradients and Adam's two moments of problems trained together


class OneMatrixConfig(TrainingConfig):
    """Options common to the three; layers are counted from 0."""

    layer: int | None = Field(None, ge=0, description="The trained layer; by default the one at `depth`.")
    depth: float = Field(
        0.0, ge=0.0, le=1.0, description="The trained layer as a fraction of the model's depth, where none is named."
    )

    def asked(self) -> Objective:
        """Which tokens are wanted where."""
        return "target"

    def largest_change(self, rms: float) -> float | None:
        """How far an entry of W may go, given the root mean square of them all; None for as far as it likes."""
        return None


class FtConfig(OneMatrixConfig):
    """Options of FT."""

    objective: Objective = Field(
        "prompt-last", description="'prompt-last' asks every target token of the prompt's end; 'target' is FT-M's."
    )

    def asked(self) -> Objective:
        """As `objective` says."""
        return self.objective


class FtLConfig(FtConfig):
    """Options of FT-L."""

    epsilon: float | None = Field(
        None, gt=0.0, description="Largest change of an entry of W; by default `relative_epsilon` times its scale."
    )
    relative_epsilon: float = Field(
        0.03, gt=0.0, description="The same relative to the root mean square of W's entries, where it is not given."
    )

    def largest_change(self, rms: float) -> float | None:
        """ε."""
        return self.relative_epsilon * rms if self.epsilon is None else self.epsilon


class FtMConfig(OneMatrixConfig):
    """Options of FT-M."""


O = TypeVar("O", bound=OneMatrixConfig)  # noqa: E741


class OneMatrix(Method[O]):
    """What the three share: which weights, and how one or many edits are trained."""

    def solve(self, lm: LanguageModel, edits: Sequence[Edit], config: O) -> Patch:
        """All edits in one training, in mini-batches; an edit asked twice counts once."""
        (layer,) = self.layers(lm, config)
        examples, places = distinct(examples_of(lm, edits, config.asked()))
        weights = MatrixChanges(lm, layer, 1)
        epsilon = config.largest_change(weights.rms)
        (trained,) = train(lm, weights, [examples], config, _box(epsilon))
        notes = edit_notes(edits, [trained.losses[i] for i in places], [trained.steps] * len(edits))
        return self._patch(lm, weights.updates(0), edits, config, layer, epsilon, notes, lm.fingerprint())

    def solve_each(self, lm: LanguageModel, edits: Sequence[Edit], config: O) -> list[Patch]:
        """One patch an edit: as many as fit are trained side by side, each with a matrix and an Adam of its own."""
        (layer,) = self.layers(lm, config)
        examples = examples_of(lm, edits, config.asked())
        base = lm.fingerprint()
        fit = SIDE_BY_SIDE_BYTES // (16 * lm.weight(layer).numel())  # change, gradient and two moments, in float32
        together = max(1, min(fit, ROWS_AT_ONCE))
        order = sorted(range(len(edits)), key=lambda i: len(examples[i].ids))  # rows of one length need no padding
        patches: dict[int, Patch] = {}
        for at in range(0, len(order), together):
            chosen = order[at : at + together]
            weights = MatrixChanges(lm, layer, len(chosen))
            epsilon = config.largest_change(weights.rms)
            trained = train(lm, weights, [[examples[i]] for i in chosen], config, _box(epsilon))
            for problem, i in enumerate(chosen):
                notes = edit_notes([edits[i]], trained[problem].losses, [trained[problem].steps])
                patches[i] = self._patch(lm, weights.updates(problem), [edits[i]], config, layer, epsilon, notes, base)
        return [patches[i] for i in range(len(edits))]

    def layers(self, lm: LanguageModel, config: O) -> list[int]:
        """The one layer it would train."""
        if config.layer is None:
            return [layer_at(lm, config.depth, last=True)]
        lm.layer(config.layer)  # raises the sentence that says why it cannot be edited
        return [config.layer]

    def _patch(
        self,
        lm: LanguageModel,
        updates: Sequence[Update],
        edits: Sequence[Edit],
        config: O,
        layer: int,
        epsilon: float | None,
        notes: dict[str, Any],
        base: str,
    ) -> Patch:
        if epsilon is not None:
            notes = {**notes, "epsilon": epsilon}
        return Patch.create(
            lm, updates, method=self.info.name, config={**config.model_dump(), "layer": layer}, edits=edits,
            seeds={"training": config.seed}, notes=notes, fingerprint=base,
        )  # fmt: skip


def _box(epsilon: float | None) -> Any:
    return None if epsilon is None else partial(torch.Tensor.clamp_, min=-epsilon, max=epsilon)


class Ft(OneMatrix[FtConfig]):
    """FT, for comparison."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ft",
        title="FT",
        strategy="global optimisation",
        summary="Plain gradient descent on one MLP matrix: the baseline, which changes more than it is asked to.",
        changes="the MLP out-projection of one layer, densely",
        needs="nothing",
        paper="Meng et al.: Locating and Editing Factual Associations in GPT (NeurIPS 2022, arXiv 2202.05262)",
    )
    Config = FtConfig


class FtL(OneMatrix[FtLConfig]):
    """FT-L."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ft-l",
        title="FT-L",
        strategy="global optimisation",
        summary="Gradient descent on one MLP matrix within an L-infinity ball around its original entries.",
        changes="the MLP out-projection of one layer, densely, no entry by more than epsilon",
        needs="nothing",
        paper="Zhu et al.: Modifying Memories in Transformer Models (2020, arXiv 2012.00363)",
    )
    Config = FtLConfig


class FtM(OneMatrix[FtMConfig]):
    """FT-M."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ft-m",
        title="FT-M",
        strategy="global optimisation",
        summary="Gradient descent on one MLP matrix for the likelihood of the whole target, the prompt masked.",
        changes="the MLP out-projection of one layer, densely",
        needs="nothing",
        paper="Zhang et al.: A Comprehensive Study of Knowledge Editing for Large Language Models "
        "(2024, arXiv 2401.01286)",
    )
    Config = FtMConfig
