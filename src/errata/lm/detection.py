"""Detect a model's architecture map from its module tree, and check it by running the model.

Nothing here looks at a model's name; :mod:`errata.lm.probe` tells a block's parts apart by what they compute.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from errata.errors import ArchitectureError, ModelError
from errata.lm.activations import frozen
from errata.lm.architecture import Architecture, ArchitectureHint, BlockMap
from errata.lm.probe import HINT, Probe


def detect(model: Any, hint: ArchitectureHint | None = None) -> Architecture:
    """Find the parts of a causal language model and verify them by forward passes of six tokens.

    Raises:
        ModelError: the weights are packed (quantised) or not in memory.
        ArchitectureError: a part could not be told apart; the sentence says which part to hand in.
    """
    hint = hint or ArchitectureHint()
    _refuse_unusable_weights(model)
    names = {module: path for path, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise ArchitectureError("The model has no token embedding or no vocabulary head: give a causal language model.")
    list_path: str = hint.blocks or _find_blocks(model)
    try:
        block_list = model.get_submodule(list_path)
    except AttributeError:
        raise ArchitectureError(
            f"There is no module {list_path!r} in this model: correct the map's 'blocks'."
        ) from None
    if not isinstance(block_list, nn.ModuleList) or not len(block_list):
        raise ArchitectureError(f"{list_path!r} is not a list of transformer blocks: correct the map's 'blocks'.")
    with torch.no_grad(), frozen(model):
        probe = Probe(model, names[embedding], names[head], list_path, len(block_list))
        blocks: list[BlockMap] = []
        known: dict[Any, BlockMap] = {}
        for index, module in enumerate(block_list):
            signature = tuple((n, type(m).__name__) for n, m in module.named_modules())
            if signature not in known:
                known[signature] = probe.block(index, hint)
            blocks.append(_moved(known[signature], f"{list_path}.{index}", module))
        probe.check_tail()
    editable = next((b for b in blocks if b.refusal is None), None)
    return Architecture(
        blocks=tuple(blocks),
        embedding=names[embedding],
        head=names[head],
        final_norm=probe.final_norm,
        hidden_size=probe.width,
        vocabulary=int(head.weight.shape[0]),
        tied=head.weight is embedding.weight,
        parallel=editable is not None and probe.parallel[editable.path],
        blocks_return_tuple=probe.blocks_return_tuple,
        accepts_positions="position_ids" in inspect.signature(model.forward).parameters,
        source="given" if hint != ArchitectureHint() else "detected",
    )


def _refuse_unusable_weights(model: Any) -> None:
    if getattr(model, "hf_quantizer", None) is not None or any(
        not (p.dtype.is_floating_point or p.dtype.is_complex) for p in model.parameters()
    ):
        raise ModelError(
            "The model's weights are packed (quantised), and an edit needs plain ones: load it dequantised, "
            "for instance the original checkpoint, or a GGUF file by its path through errata.load."
        )
    if any(p.is_meta for p in model.parameters()):
        raise ModelError("Some of the model's weights are offloaded to disk: load it where all of them fit in memory.")


def _find_blocks(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    wanted = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) if config is not None else None
    lists = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    fitting = [path for path, m in lists.items() if len(m) == wanted] if wanted else list(lists)
    outermost = [p for p in fitting if not any(p.startswith(f"{other}.") for other in fitting)]
    if len(outermost) > 1:  # the list that holds most of the weights
        sizes = {p: sum(w.numel() for w in lists[p].parameters()) for p in outermost}
        outermost = [p for p in outermost if sizes[p] > sum(sizes.values()) / 2]
    if len(outermost) != 1:
        raise ArchitectureError(f"The list of transformer blocks could not be told apart: {HINT}.")
    return str(outermost[0])


def _moved(block: BlockMap, path: str, module: nn.Module) -> BlockMap:
    """The same map for a block of the same structure elsewhere in the list."""

    def move(name: str | None) -> str | None:
        return path + name.removeprefix(block.path) if name else name

    out = move(block.out_projection) or ""
    return replace(
        block,
        path=path,
        out_projection=out,
        attention_output=move(block.attention_output) or "",
        attention=move(block.attention),
        mlp=move(block.mlp),
        norms=tuple(move(n) or "" for n in block.norms),
    )
