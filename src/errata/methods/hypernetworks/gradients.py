"""Keys and gradients of edits: what the edited matrices see where the answers are predicted, and which way to push.

For a linear layer y = W x, the gradient of a loss is Dᵀ X with X the inputs and D the gradients at the outputs, one row
a token. Only the rows whose outputs predict a token of the answer are taken: token j of an answer after p tokens of
prompt is predicted at position p - 1 + j.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import NumericalError
from errata.lm.activations import frozen, replace
from errata.lm.forward import SplitBatch
from errata.lm.language_model import LanguageModel
from errata.lm.tokens import prompt_ids, target_ids
from errata.records import Edit

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Trace:
    """One layer's rows: ``keys`` [N, m] and ``gradients`` [N, d], float32, for N answer tokens; ``outputs`` [N, d]."""

    keys: Tensor
    gradients: Tensor
    outputs: Tensor


def answer_traces(lm: LanguageModel, edits: Sequence[Edit], layers: Sequence[int]) -> dict[int, Trace]:
    """Each layer's keys and gradients at the edits' answer tokens, edit after edit.

    The loss is the sum over answer tokens of their negative log-likelihood, teacher-forced.

    Raises:
        RequestError: an answer that the tokenizer cannot spell.
        NumericalError: a gradient is not finite.
    """
    prompts = [prompt_ids(lm.tokenizer, edit.text) for edit in edits]
    targets = [target_ids(lm.tokenizer, edit.text, edit.target_new) for edit in edits]
    order = sorted(range(len(edits)), key=lambda i: len(prompts[i]) + len(targets[i]))
    found: dict[int, dict[int, tuple[Tensor, Tensor, Tensor]]] = {layer: {} for layer in layers}
    for at in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[at : at + ROWS_AT_ONCE]
        parts = _batch_traces(lm, [prompts[i] for i in chosen], [targets[i] for i in chosen], layers)
        for layer, rows in parts.items():
            found[layer].update(zip(chosen, rows, strict=True))
    traces = {}
    for layer, by_edit in found.items():
        columns = [torch.cat([by_edit[i][part] for i in range(len(edits))]) for part in range(3)]
        traces[layer] = Trace(keys=columns[0], gradients=columns[1], outputs=columns[2])
        if not bool(torch.isfinite(traces[layer].gradients).all()):
            raise NumericalError(f"A gradient at layer {layer} is not a number: load the model in float32.")
    return traces


def _batch_traces(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], layers: Sequence[int]
) -> dict[int, list[tuple[Tensor, Tensor, Tensor]]]:
    batch = SplitBatch(lm, [[*prompt, *target[:-1]] for prompt, target in zip(prompts, targets, strict=True)])
    spots = [
        (row, len(prompt) - 1 + j, token)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
        for j, token in enumerate(target)
    ]
    rows, columns, wanted = (torch.tensor([spot[part] for spot in spots]) for part in range(3))
    paths = {layer: lm.layer(layer).out_projection for layer in layers}
    at_outputs: dict[str, Tensor] = {}

    def watched(path: str) -> Callable[[Tensor], Tensor]:
        def watch(out: Tensor) -> Tensor:
            # Weights ask for no gradient; asking for one here makes everything above the lowest layer differentiable.
            at_outputs[path] = out.clone() if out.requires_grad else out.detach().clone().requires_grad_(True)
            return at_outputs[path].clone()  # some blocks add to it in place

        return watch

    with torch.inference_mode(False), torch.enable_grad(), frozen(lm.model), ExitStack() as stack:
        for path in paths.values():
            stack.enter_context(replace(lm.model, path, watched(path)))
        logits, seen = batch.run(at=(rows, columns), inputs=list(paths.values()))
        if logits is None:
            raise RuntimeError("a pass that was not stopped gives logits")
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted.to(logits.device), reduction="sum")
        slopes = torch.autograd.grad(loss, [at_outputs[path] for path in paths.values()])
    sizes = [len(target) for target in targets]

    def picked(tensor: Tensor) -> list[Tensor]:
        shaped = tensor.detach().reshape(*batch.ids.shape, -1)
        at = shaped.device
        return list(torch.split(shaped[rows.to(at), columns.to(at)].float(), sizes))

    return {
        layer: list(zip(picked(seen.inputs[path]), picked(slope), picked(at_outputs[path]), strict=True))
        for (layer, path), slope in zip(paths.items(), slopes, strict=True)
    }
