"""LoRA: low-rank adapters on some matrices of some layers, trained on the edits and kept as a low-rank patch.

Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models (ICLR 2022, arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from errata.errors import ArchitectureError
from errata.lm.language_model import LanguageModel
from errata.methods.base import Method, MethodInfo
from errata.methods.fine_tuning.adapters import Adapters, AdapterShape
from errata.methods.fine_tuning.config import TrainingConfig
from errata.methods.fine_tuning.examples import distinct, examples_of
from errata.methods.fine_tuning.training import edit_notes, train
from errata.patch import Patch
from errata.records import Edit


class AdapterConfig(TrainingConfig):
    """Options of LoRA; layers are counted from 0."""

    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="The adapted layers; by default `span` of them up to `depth`."
    )
    depth: float = Field(
        0.2, ge=0.0, le=1.0, description="The highest adapted layer as a fraction of depth, where none are named."
    )
    span: int = Field(5, ge=1, description="How many layers are adapted, where none are named.")
    targets: tuple[str, ...] = Field(
        ("mlp",),
        min_length=1,
        description="The adapted matrices of a layer: 'attention', 'mlp', or names of modules such as 'q_proj'.",
    )
    rank: int = Field(8, ge=1, description="Of each adapter.")
    alpha: float = Field(32.0, gt=0.0, description="The adapter is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Share of an adapter's input that is silenced in training.")
    steps: int = Field(60, ge=1, le=10_000, description="Passes over the edits, at most.")
    learning_rate: float = Field(1e-3, gt=0.0, description="Adam's learning rate.")


class Lora(Method[AdapterConfig]):
    """LoRA; needs the extra ``lora``."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="lora",
        title="LoRA",
        strategy="global optimisation",
        summary="Low-rank adapters on the matrices of a few layers, trained for the likelihood of the whole target.",
        changes="the MLP matrices of about five layers, or others that are named, each by a change of low rank",
        needs="the package peft (pip install 'errata[lora]')",
        paper="Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models (ICLR 2022, arXiv 2106.09685)",
    )
    Config = AdapterConfig

    def solve(self, lm: LanguageModel, edits: Sequence[Edit], config: AdapterConfig) -> Patch:
        """All edits in one training, in mini-batches; an edit asked twice counts once."""
        return self._solved(lm, edits, config, lm.fingerprint())

    def solve_each(self, lm: LanguageModel, edits: Sequence[Edit], config: AdapterConfig) -> list[Patch]:
        """One patch an edit, one after another; the model is read for its fingerprint once."""
        base = lm.fingerprint()
        return [self._solved(lm, [edit], config, base) for edit in edits]

    def _solved(self, lm: LanguageModel, edits: Sequence[Edit], config: AdapterConfig, base: str) -> Patch:
        layers = self.layers(lm, config)
        shape = AdapterShape(config.rank, config.alpha, config.dropout, config.seed)
        weights = Adapters(lm, layers, config.targets, shape)
        examples, places = distinct(examples_of(lm, edits, "target"))
        (trained,) = train(lm, weights, [examples], config)
        losses = [trained.losses[i] for i in places]
        return Patch.create(
            lm, weights.updates(0), method=self.info.name, config={**config.model_dump(), "layers": layers},
            edits=edits, seeds={"training": config.seed}, fingerprint=base,
            notes=edit_notes(edits, losses, [trained.steps] * len(edits)),
        )  # fmt: skip

    def layers(self, lm: LanguageModel, config: AdapterConfig) -> list[int]:
        """The layers it would adapt, in order."""
        return adapted_layers(lm, config)


def adapted_layers(lm: LanguageModel, config: AdapterConfig) -> list[int]:
    """The layers that a configuration names or leaves to its defaults, in order.

    Raises:
        ArchitectureError: there is no such layer.
    """
    if config.layers is None:
        last = round(config.depth * (lm.num_layers - 1))
        return list(range(max(0, last - config.span + 1), last + 1))
    for layer in config.layers:
        if not 0 <= layer < lm.num_layers:
            raise ArchitectureError(
                f"There is no layer {layer}: {lm.name} has layers 0 to {lm.num_layers - 1}; choose one of them."
            )
    return sorted(set(config.layers))
