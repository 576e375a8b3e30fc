"""What a few forward passes show of a transformer block: its attention, its MLP, and how its output is put together.

Three facts hold for every decoder and are tested on the running model:

* a matrix's orientation shows in its input and output: y = x Wᵀ or y = x W;
* attention mixes positions and is the first thing in a block that does, so the attention's last matrix is the first one
  of output width d whose input at a later position depends on the first position;
* with the attention's output held fixed, the MLP works position by position, and its last matrix is the last one of
  output width d to run in the block.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import ArchitectureError
from errata.lm.activations import capture, hidden_of, stop_at
from errata.lm.activations import replace as replaced
from errata.lm.architecture import ArchitectureHint, BlockMap

PROBE_LENGTH = 6
HINT = (
    "hand in the map: "
    "errata.load(..., architecture=ArchitectureHint(blocks=..., out_projection=..., attention_output=...))"
)
MIXTURE = (
    "it is a mixture of experts, where a token's key depends on the expert it goes to; choose a dense layer or model."
)


@dataclass
class _Call:
    """One call of a leaf module during the probe: its path, input and output."""

    path: str
    given: Tensor
    result: Tensor


class Probe:
    """Forward passes over six fixed tokens, and what they show."""

    def __init__(self, model: Any, embedding: str, head: str, list_path: str, count: int) -> None:
        self.model, self.head, self.list_path, self.count = model, head, list_path, count
        table = model.get_submodule(embedding).weight
        ids = torch.arange(3, 3 + PROBE_LENGTH, device=table.device) % table.shape[0]
        self.inputs = {"input_ids": ids.unsqueeze(0), "attention_mask": torch.ones_like(ids).unsqueeze(0)}
        self.parallel: dict[str, bool] = {}
        self.final_norm: str | None = None
        first = f"{list_path}.0"
        returned: list[bool] = []
        handle = model.get_submodule(first).register_forward_hook(
            lambda _m, _a, out: returned.append(isinstance(out, tuple))
        )
        try:
            with capture(model, inputs=[first]) as seen, stop_at(model, first):
                self._forward()
        finally:
            handle.remove()
        if first not in seen.inputs:
            raise ArchitectureError(f"The forward pass never reached {first!r}: {HINT}.")
        self.blocks_return_tuple = returned[0]
        self.width = int(seen.inputs[first].shape[-1])

    def _forward(self) -> Any:
        return self.model(**self.inputs, use_cache=False)

    def block(self, index: int, hint: ArchitectureHint) -> BlockMap:
        """Map one block and verify it."""
        path = f"{self.list_path}.{index}"
        module = self.model.get_submodule(path)
        clean, calls = self._trace(path)
        mixed = self._trace(path, perturb=True)[1]
        matrices = [c for c in calls if _orientation(self.model.get_submodule(c.path), c) is not None]
        wide = [c for c in matrices if c.result.shape[-1] == self.width]
        mixes = {c.path for c, d in zip(calls, mixed, strict=True) if _differs_later(c.given, d.given)}
        attention_output = self._named(hint.attention_output, path, "attention_output") or next(
            (c.path for c in wide if c.path in mixes), None
        )
        if attention_output is None:
            raise ArchitectureError(f"The attention's output matrix of {path!r} could not be told apart: {HINT}.")
        after = [c for c in wide if c.path != attention_output]
        attention = _shared_parent(attention_output, path)
        out = self._named(hint.out_projection, path, "out_projection") or next(
            (c.path for c in reversed(self._outside(after, attention))), None
        )
        refusal = MIXTURE if _has_experts(module, path, attention, out) else None
        if out is None and refusal is None:
            raise ArchitectureError(f"The MLP's last matrix of {path!r} could not be told apart: {HINT}.")
        call = next((c for c in self._outside(after, attention) if c.path == out), None)
        if out is not None and call is None and refusal is None:
            raise ArchitectureError(
                f"{out!r} is not a matrix of the MLP of {path!r}, {self.width} wide: correct the map."
            )
        transposed = call is not None and _orientation(self.model.get_submodule(call.path), call) == "in_out"
        mlp_first = next((c.path for c in matrices if attention is None or not c.path.startswith(f"{attention}.")), out)
        self.parallel[path] = mlp_first not in mixes and mlp_first != attention_output
        if out is not None and refusal is None:
            self._check_position_wise(path, attention_output, out)
        return BlockMap(
            path=path,
            out_projection=out or "",
            transposed=transposed,
            attention_output=attention_output,
            attention=attention,
            mlp=_shared_parent(out, path) if out else None,
            norms=tuple(
                c.path
                for c in self._outside(calls, attention)
                if _is_norm(self.model.get_submodule(c.path), self.width)
            ),
            additive=refusal is None and out is not None and self._is_additive(path, out, clean),
            key_width=int(call.given.shape[-1]) if call is not None else 0,
            refusal=refusal,
        )

    def _named(self, relative: str | None, path: str, part: str) -> str | None:
        if relative is None:
            return None
        full = f"{path}.{relative}"
        try:
            self.model.get_submodule(full)
        except AttributeError:
            raise ArchitectureError(f"There is no module {full!r} in this model: correct the map's {part!r}.") from None
        return full

    def _outside(self, calls: list[_Call], attention: str | None) -> list[_Call]:
        return [c for c in calls if attention is None or not c.path.startswith(f"{attention}.")]

    def _trace(self, path: str, *, perturb: bool = False) -> tuple[Tensor, list[_Call]]:
        """Run up to the end of one block; return its output and every call of a leaf module in it, in order."""
        calls: list[_Call] = []
        module = self.model.get_submodule(path)
        with ExitStack() as hooks:
            for name, leaf in module.named_modules():
                if not any(True for _ in leaf.children()) and any(True for _ in leaf.parameters(recurse=False)):

                    def note(_: nn.Module, args: Any, result: Any, name: str = name) -> None:
                        if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
                            calls.append(_Call(f"{path}.{name}", args[0].clone(), result.clone()))

                    hooks.callback(leaf.register_forward_hook(note).remove)
            if perturb:
                hooks.enter_context(replaced(self.model, path, _perturbed, where="input"))
            with capture(self.model, outputs=[path]) as seen, stop_at(self.model, path):
                self._forward()
        return seen.outputs[path], calls

    def _check_position_wise(self, path: str, attention_output: str, out: str) -> None:
        """With the attention's output held, the key at a later position must not see the first position."""
        with capture(self.model, inputs=[out], outputs=[attention_output]) as clean, stop_at(self.model, path):
            self._forward()
        held = clean.outputs[attention_output]
        with (
            replaced(self.model, path, _perturbed, where="input"),
            replaced(self.model, attention_output, lambda _: held),
            capture(self.model, inputs=[out]) as other,
            stop_at(self.model, path),
        ):
            self._forward()
        if _differs_later(clean.inputs[out], other.inputs[out]):
            raise ArchitectureError(
                f"The input of {out!r} mixes positions, so its keys are not a subject's own: {HINT}."
            )

    def _is_additive(self, path: str, out: str, clean: Tensor) -> bool:
        """Whether a shift of W's output shows unchanged in the block's output."""
        shift = torch.linspace(-1.0, 1.0, self.width, device=clean.device, dtype=torch.float32).to(clean.dtype)
        with (
            replaced(self.model, out, lambda value: value + shift.to(value.device)),
            capture(self.model, outputs=[path]) as seen,
            stop_at(self.model, path),
        ):
            self._forward()
        moved = (seen.outputs[path].float() - clean.float()).reshape(-1, self.width)
        tolerance = 1e-3 if clean.dtype == torch.float32 else 5e-2
        scale = max(1.0, float(clean.float().abs().max()))
        return bool((moved - shift.float()).abs().max() < tolerance * scale)

    def check_tail(self) -> None:
        """Find the final norm: the module outside the blocks whose output is what the head takes."""
        results: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name, module in self.model.named_modules():
                if name and name != self.head and not name.startswith(f"{self.list_path}."):

                    def note(_: nn.Module, __: Any, result: Any, name: str = name) -> None:
                        if isinstance(hidden_of(result), Tensor):
                            results[name] = hidden_of(result)

                    if not any(True for _ in module.children()):
                        hooks.callback(module.register_forward_hook(note).remove)
            with capture(self.model, inputs=[self.head]) as seen, stop_at(self.model, self.head):
                self._forward()
        into_head = seen.inputs.get(self.head)
        if into_head is None:
            raise ArchitectureError("The vocabulary head never ran in the forward pass: give a causal language model.")
        for name, result in results.items():
            if result.shape == into_head.shape and torch.equal(result, into_head):
                self.final_norm = name


def _perturbed(hidden: Tensor) -> Tensor:
    changed = hidden.clone()
    changed[:, 0] = -changed[:, 0] + 0.5
    return changed


def _differs_later(first: Tensor, second: Tensor) -> bool:
    """Whether two runs differ anywhere but at the first position."""
    a, b = _by_position(first), _by_position(second)
    return a.shape != b.shape or bool((a[1:].float() - b[1:].float()).abs().max() > 1e-6)


def _by_position(tensor: Tensor) -> Tensor:
    return tensor.reshape(PROBE_LENGTH, -1) if tensor.numel() % PROBE_LENGTH == 0 else tensor.reshape(1, -1)


def _orientation(module: nn.Module, call: _Call) -> str | None:
    """ "out_in" for y = x Wᵀ + b, "in_out" for y = x W + b, None for what is no matrix: seen from what it computes."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not call.given.is_floating_point():
        return None
    bias = getattr(module, "bias", None)
    result = call.result.float() - (bias.float() if isinstance(bias, Tensor) else 0.0)
    given, w = call.given.float(), weight.float()
    for name, matrix in (("out_in", w.T), ("in_out", w)):
        if given.shape[-1] == matrix.shape[0] and result.shape[-1] == matrix.shape[1]:
            error = (given @ matrix - result).abs().max()
            if error <= 2e-2 * (1e-6 + result.abs().max()):
                return name
    return None


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and weight.shape[0] == width


def _shared_parent(path: str, block: str) -> str | None:
    parent = path.rpartition(".")[0]
    return parent if parent != block else None


def _has_experts(block: nn.Module, path: str, attention: str | None, out: str | None) -> bool:
    """Whether the block keeps several MLPs: weights stacked in three dimensions, or a list of modules around W."""
    stacked = any(
        p.ndim == 3 and not (attention and f"{path}.{name}".startswith(f"{attention}."))
        for name, p in block.named_parameters()
    )
    listed: dict[str, int] = defaultdict(int)
    for name, module in block.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and any(p.ndim == 2 for p in module.parameters()):
            listed[name] += 1
    return stacked or bool(listed)
