"""Knobs shared by the fine-tuning editors."""

from __future__ import annotations

from pydantic import Field

from errata.errors import ConfigError
from errata.lm.architecture import BlockMap
from errata.lm.language_model import LanguageModel
from errata.methods.base import MethodConfig


class TrainingConfig(MethodConfig):
    """Options of the training loop, common to all of them."""

    steps: int = Field(25, ge=1, le=10_000, description="Passes over the edits, at most.")
    learning_rate: float = Field(5e-4, gt=0.0, description="Adam's learning rate.")
    weight_decay: float = Field(0.0, ge=0.0, description="Adam's pull of what is trained towards 0, its start.")
    stop_loss: float = Field(0.01, ge=0.0, description="Training ends where every edit's loss is below this.")
    batch_size: int = Field(16, ge=1, description="Edits a step of Adam, where there are several.")
    seed: int = Field(0, ge=0, description="Of the order of several edits, and of LoRA's start and dropout.")


def block_modules(lm: LanguageModel, layer: int, targets: tuple[str, ...]) -> list[str]:
    """The paths of one block's linear modules that are meant by some targets, in the block's order.

    A target is ``attention`` or ``mlp``, for all matrices of that part as the architecture map has it, or the name of
    a module in the block, such as ``q_proj`` or ``self_attn.q_proj``.

    Raises:
        ArchitectureError: the MLP is wanted of a block whose MLP cannot be edited.
        ConfigError: the block has no such matrix.
    """
    block = lm.architecture.blocks[layer]
    paths = [path for path, module in lm.block(layer).named_modules(prefix=block.path) if is_linear(module)]
    found: set[str] = set()
    for target in targets:
        if target == "mlp":
            lm.layer(layer)  # raises the sentence that says why a mixture of experts is refused
        parts = {"attention": _attention, "mlp": _mlp}
        named = parts[target](block, paths) if target in parts else {p for p in paths if p.endswith(f".{target}")}
        if not named:
            known = ", ".join(p.removeprefix(f"{block.path}.") for p in paths)
            raise ConfigError(
                f"Layer {layer} of {lm.name} has no matrix {target!r}: choose 'attention', 'mlp' or some of {known}."
            )
        found |= named
    return [p for p in paths if p in found]


def _attention(block: BlockMap, paths: list[str]) -> set[str]:
    return _below(block.attention, paths) if block.attention else {block.attention_output}


def _mlp(block: BlockMap, paths: list[str]) -> set[str]:
    """All that is not attention where the MLP has no module of its own; only W where the attention has none either."""
    if block.mlp:
        return _below(block.mlp, paths)
    return set(paths) - _attention(block, paths) if block.attention else {block.out_projection}


def _below(module: str, paths: list[str]) -> set[str]:
    return {path for path in paths if path.startswith(f"{module}.")}


def is_linear(module: object) -> bool:
    """Whether a module multiplies by one matrix, in either of the two ways to store it."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
