"""MLP neurons by layer and index, and patches that scale or rewrite what they write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LanguageModel
from errata.lm.tokens import target_ids
from errata.locate.vocabulary import Vocabulary
from errata.patch import LowRank, Patch, ScaledColumns


@dataclass(frozen=True, order=True)
class Neuron:
    """Entry ``index`` of the input of layer ``layer``'s out-projection, both counted from 0."""

    layer: int
    index: int


@dataclass(frozen=True)
class Grid:
    """The neurons of some layers in one row: layer after layer.

    Attributes:
        layers: their numbers. widths: how many neurons each has.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, layers: Sequence[int], tensors: Sequence[Tensor]) -> Grid:
        """The grid of one tensor [.., m] a layer."""
        return cls(tuple(layers), tuple(tensor.shape[-1] for tensor in tensors))

    def __len__(self) -> int:
        return sum(self.widths)

    def neuron(self, at: int) -> Neuron:
        """The neuron at a place of the row."""
        for layer, width in zip(self.layers, self.widths, strict=True):
            if at < width:
                return Neuron(layer, at)
            at -= width
        raise IndexError(at)

    def neurons(self, mask: Tensor) -> list[Neuron]:
        """Those where a mask over the row is true, in order."""
        return [self.neuron(int(at)) for at in mask.nonzero()[:, 0]]


def check_neurons(lm: LanguageModel, neurons: Iterable[Neuron]) -> list[Neuron]:
    """The neurons, each once and in order.

    Raises:
        ArchitectureError: there is no such layer, or it has no neurons.
        ConfigError: there is no neuron, or a layer has none of that index.
    """
    found = sorted(set(neurons))
    if not found:
        raise ConfigError("There are no neurons to change: lower the threshold, or look at more prompts.")
    for neuron in found:
        width = lm.layer(neuron.layer).key_width
        if not 0 <= neuron.index < width:
            raise ConfigError(
                f"Layer {neuron.layer} has neurons 0 to {width - 1} and no {neuron.index}: choose one of them."
            )
    return found


def drawn(neurons: Iterable[Neuron], grid: Grid, seed: int) -> list[Neuron]:
    """Other neurons, as many in each layer."""
    generator = torch.Generator().manual_seed(seed)
    taken = sorted(set(neurons))
    chosen: list[Neuron] = []
    for layer, width in zip(grid.layers, grid.widths, strict=True):
        own = {neuron.index for neuron in taken if neuron.layer == layer}
        free = [i for i in torch.randperm(width, generator=generator).tolist() if i not in own]
        chosen += [Neuron(layer, index) for index in free[: len(own)]]
    return chosen


def scale_neurons(
    lm: LanguageModel,
    neurons: Iterable[Neuron],
    factor: float,
    *,
    method: str = "knowledge-neurons",
    config: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
) -> Patch:
    """A patch that multiplies the neurons' activations by a factor, at every position of every text.

    Args:
        lm: the model, which stays as it is.
        neurons: which.
        factor: 0 silences them, 2 doubles them.
        method: what the card calls the patch's origin. config: what it keeps of the settings.
        fingerprint: the model's, where it is known.

    Raises:
        ConfigError: no neuron, or one that is not there.
        ArchitectureError: no such layer.
        PatchError: the factor is not finite.
    """
    found = check_neurons(lm, neurons)
    updates = []
    for layer in sorted({neuron.layer for neuron in found}):
        name = lm.weight_name(layer)
        columns = {neuron.index: factor for neuron in found if neuron.layer == layer}
        weight = lm.model.get_parameter(name)
        updates.append(ScaledColumns.of(name, weight, columns, transposed=lm.layer(layer).transposed))
    settings = {**(config or {}), "factor": factor, "neurons": [[neuron.layer, neuron.index] for neuron in found]}
    return Patch.create(lm, updates, method=method, config=settings, edits=[], fingerprint=fingerprint)


def rewrite_neurons(
    lm: LanguageModel,
    neurons: Iterable[Neuron],
    prompt: str,
    old: str,
    new: str,
    *,
    subtract: float = 1.0,
    add: float = 8.0,
    fingerprint: str | None = None,
) -> Patch:
    """A patch that takes the old answer's direction out of what the neurons write, and puts in the new one's.

    ``w += -subtract ‖w‖ e_old/‖e_old‖ + add ‖w‖ e_new/‖e_new‖`` (Dai et al., 2022, section 4.3; they use BERT's word
    embeddings, which are its output embeddings too). Here ``e`` is the answer's row of the vocabulary head times the
    gain of the final norm, the mean over its tokens: what the residual stream must hold for these tokens to be likely.

    Raises:
        RequestError: an answer has no tokens.
        ConfigError, ArchitectureError: no such neurons.
    """
    found = check_neurons(lm, neurons)
    vocabulary = Vocabulary(lm)
    unit = {}
    for name, answer in (("old", old), ("new", new)):
        direction = vocabulary.direction(target_ids(lm.tokenizer, prompt, answer))
        unit[name] = direction / direction.norm()
    updates = []
    for layer in sorted({neuron.layer for neuron in found}):
        index = [neuron.index for neuron in found if neuron.layer == layer]
        weight = lm.weight(layer)
        norms = weight[:, index].float().norm(dim=0).cpu()
        change = add * unit["new"] - subtract * unit["old"]
        right = torch.zeros(len(index), weight.shape[1])
        right[torch.arange(len(index)), torch.tensor(index)] = 1.0
        turned = lm.layer(layer).transposed
        updates.append(LowRank(lm.weight_name(layer), change[:, None] * norms, right, turned))
    settings = {
        "operation": "rewrite",
        "prompt": prompt,
        "old": old,
        "new": new,
        "subtract": subtract,
        "add": add,
        "neurons": [[neuron.layer, neuron.index] for neuron in found],
    }
    return Patch.create(lm, updates, method="knowledge-neurons", config=settings, edits=[], fingerprint=fingerprint)
