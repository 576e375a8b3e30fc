"""Promoting value vectors: MLP units that raise chosen words are held up, always or where it matters.

Geva et al., *Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the Vocabulary Space*, EMNLP
2022 (2203.14680), hold ten units of GPT-2 at 3, by a hook, at every position. A patch has no hook. Where W has a bias
the same is exact in the weights: the units' columns are set to zero, and the bias gains coefficient times column. Where
it has none (Llama), the constant is the nearest one that is linear in the keys (:mod:`errata.methods.detox.gates`).

That works on words: it also makes a harmless question with a sensitive word in it be answered so. The semantic form
opens the gate on the keys behind the harmful requests, and closes it on those of harmless ones and of ordinary text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from errata.datasets.detox import DetoxExample
from errata.errors import ConfigError
from errata.lm.language_model import LanguageModel
from errata.lm.tokens import prompt_ids
from errata.locate.neurons import Neuron
from errata.locate.value_vectors import by_words
from errata.methods.base import MethodInfo
from errata.methods.detox.base import DetoxMethod, WordedConfig, constraint_rows, safe_rows, unsafe_rows
from errata.methods.detox.gates import Gate, fit, keys_of
from errata.patch import Dense, LowRank, Patch, ScaledColumns, Update
from errata.statistics import open_corpus

QUANTILE = 0.99
WORDS = ("sorry", "cannot", "unfortunately", "decline", "responsible", "respectful", "safety")


class PromotionConfig(WordedConfig):
    """Options of value promotion; layers are counted from 0."""

    words: tuple[str, ...] = Field(WORDS, min_length=1, description="What the promoted units are to raise.")
    units: int = Field(10, ge=1, description="How many units, those that raise (or, reversed, lower) the words most.")
    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="Where they are looked for; by default from half the depth upwards."
    )
    multiple: float = Field(
        1.0, gt=0.0, description="Their coefficient, as a multiple of the 99th percentile of its size on ordinary text."
    )
    corpus: str = Field("self", description="Ordinary text: 'self', a path, or hub:<dataset>.")
    tokens: int = Field(3000, ge=100, description="Of ordinary text.")
    ridge: float = Field(0.01, gt=0.0, description="Penalty on a gate, relative to the mean squared size of a key.")


class SemanticConfig(PromotionConfig):
    """Options of semantic promotion."""

    multiple: float = Field(
        3.0, gt=0.0, description="Their coefficient, as a multiple of the 99th percentile of its size on ordinary text."
    )
    opening: int = Field(
        3,
        ge=1,
        description="At how many first tokens of an answer the gate is to be open; later it is to be shut again.",
    )
    harmless: tuple[str, ...] = Field(
        (), description="Requests that must be answered as before although they look like harmful ones."
    )


class _Promotion(DetoxMethod[PromotionConfig]):
    def layers(self, lm: LanguageModel, config: PromotionConfig) -> list[int]:
        """Where units are looked for."""
        if config.layers is not None:
            for layer in config.layers:
                lm.layer(layer)  # raises the sentence that says why it cannot be edited
            return sorted(set(config.layers))
        upper = range(lm.num_layers // 2, lm.num_layers)
        usable = [layer for layer in upper if lm.architecture.blocks[layer].refusal is None]
        if not usable:
            lm.layer(lm.num_layers - 1)
        return usable

    def _promoted(
        self, lm: LanguageModel, config: PromotionConfig
    ) -> tuple[dict[int, dict[int, float]], dict[int, Tensor], list[list[Any]]]:
        """Coefficients by layer and unit, ordinary keys [n, m] by layer, and what the card says of each unit.

        Raises:
            ConfigError: there is no ordinary text.
        """
        windows = list(open_corpus(config.corpus).windows(lm, config.tokens))
        if not windows:
            raise ConfigError(f"The corpus {config.corpus!r} holds no text: give another one.")
        _, found, _ = by_words(lm, config.words, layers=self.layers(lm, config), limit=config.units)
        layers = sorted({neuron.layer for neuron, _ in found})
        ordinary = {layer: torch.cat(rows) for layer, rows in keys_of(lm, windows, layers).items()}
        held: dict[int, dict[int, float]] = {layer: {} for layer in layers}
        for neuron, score in found:
            held[neuron.layer][neuron.index] = config.multiple * _usual(ordinary, neuron) * (1 if score > 0 else -1)
        told = [[n.layer, n.index, score, held[n.layer][n.index]] for n, score in found]
        return held, ordinary, told

    def _solved(
        self, lm: LanguageModel, examples: Sequence[DetoxExample], config: PromotionConfig, updates: list[Update],
        told: list[list[Any]], gates: dict[int, Gate],
    ) -> Patch:  # fmt: skip
        fitted = {
            str(layer): {"open": gate.opened, "closed": gate.closed, "spread": gate.spread}
            for layer, gate in gates.items()
        }
        notes = {"units": told, "gates": fitted}
        return self.patch(lm, updates, examples, config, notes=notes)


class ValuePromotion(_Promotion):
    """Value promotion at every position."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="value-promotion",
        title="Value-vector promotion",
        strategy="local modification",
        summary="Holds the MLP units that raise chosen words at a large coefficient, at every position of every text.",
        changes="some columns of MLP out-projections and their bias, or a rank-one term where there is no bias",
        needs="words; ordinary text",
        paper="Geva et al.: Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the Vocabulary "
        "Space (EMNLP 2022, arXiv 2203.14680)",
    )
    Config = PromotionConfig

    def solve(self, lm: LanguageModel, examples: Sequence[DetoxExample], config: PromotionConfig) -> Patch:
        """Exact where the out-projection has a bias; of the examples only the card takes notice."""
        held, ordinary, told = self._promoted(lm, config)
        updates: list[Update] = []
        gates: dict[int, Gate] = {}
        for layer, units in held.items():
            name, turned = lm.weight_name(layer), lm.layer(layer).transposed
            weight = lm.model.get_parameter(name)
            updates.append(ScaledColumns.of(name, weight, dict.fromkeys(units, 0.0), transposed=turned))
            value = _value(lm, layer, units)
            if getattr(lm.out_projection(layer), "bias", None) is not None:
                updates.append(Dense(f"{lm.architecture.blocks[layer].out_projection}.bias", value))
            else:
                gates[layer] = fit(ordinary[layer], None, config.ridge)
                updates.append(LowRank(name, value[:, None], gates[layer].vector[None], turned))
        return self._solved(lm, examples, config, updates, told, gates)


class SemanticPromotion(_Promotion):
    """Value promotion where the request calls for it."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="semantic-promotion",
        title="Semantic value promotion",
        strategy="local modification",
        summary="Adds what such units write, behind a gate that opens on harmful requests and not on harmless ones.",
        changes="MLP out-projections, each by a rank-one term",
        needs="words; ordinary text; harmless requests that look like the harmful ones, for a sharp gate",
        paper="after Geva et al.: Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the "
        "Vocabulary Space (EMNLP 2022, arXiv 2203.14680)",
    )
    Config = SemanticConfig

    def solve(self, lm: LanguageModel, examples: Sequence[DetoxExample], config: PromotionConfig) -> Patch:
        """The gate is fitted where the examples' answers are predicted, against harmless requests and ordinary text."""
        wording = config.wording(lm)
        rows = safe_rows(lm, examples, wording)
        rows += unsafe_rows(lm, [e for e in examples if e.unsafe is not None], wording, self.info.title)
        kept = [row.ids for own in constraint_rows(lm, examples, wording) for row in own]
        kept += [prompt_ids(lm.tokenizer, wording.prompt(lm, text)) for text in getattr(config, "harmless", ())]
        held, ordinary, told = self._promoted(lm, config)
        layers = list(held)
        opening = getattr(config, "opening", 1)
        answered = keys_of(lm, [row.ids for row in rows], layers)
        quiet = keys_of(lm, kept, layers) if kept else {layer: [] for layer in layers}
        updates: list[Update] = []
        gates: dict[int, Gate] = {}
        for layer, units in held.items():
            behind = [keys[[at for at, _ in row.wanted]] for keys, row in zip(answered[layer], rows, strict=True)]
            first, later = [own[:opening] for own in behind], [own[opening:] for own in behind]
            gates[layer] = fit(torch.cat(first), torch.cat([ordinary[layer], *quiet[layer], *later]), config.ridge)
            value = _value(lm, layer, units)
            updates.append(
                LowRank(lm.weight_name(layer), value[:, None], gates[layer].vector[None], lm.layer(layer).transposed)
            )
        return self._solved(lm, examples, config, updates, told, gates)


def _usual(ordinary: dict[int, Tensor], neuron: Neuron) -> float:
    """The 99th percentile of the size of a unit's coefficient."""
    return float(torch.quantile(ordinary[neuron.layer][:, neuron.index].abs(), QUANTILE))


def _value(lm: LanguageModel, layer: int, units: dict[int, float]) -> Tensor:
    """What the units write together at their coefficients, [d] in float32."""
    columns = lm.weight(layer)[:, list(units)].detach().float()
    return columns @ torch.tensor(list(units.values()), device=columns.device)
