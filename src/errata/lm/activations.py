"""Capture and replace hidden states: ``with`` blocks whose hooks are always removed.

Modules are named by their path in the model (``model.layers.3.mlp.down_proj``). Blocks of some families return a tuple;
the hidden state is its first entry, and that is what is captured or replaced here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Where = Literal["input", "output"]


class _Stop(Exception):  # control flow, never seen by a caller
    """Ends a forward pass that has computed all that was wanted."""


@dataclass
class Captured:
    """The tensors seen during a ``capture`` block: path -> the latest input or output of that module."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def hidden_of(value: Any) -> Tensor:
    """The hidden state in what a block takes or returns: the tensor itself or the first entry of a tuple."""
    hidden: Tensor = value[0] if isinstance(value, tuple) else value
    return hidden


def _with_hidden(value: Any, hidden: Tensor) -> Any:
    return (hidden, *value[1:]) if isinstance(value, tuple) else hidden


@contextmanager
def capture(
    model: nn.Module, *, inputs: Iterable[str] = (), outputs: Iterable[str] = (), detach: bool = True
) -> Iterator[Captured]:
    """Record the named modules' inputs and outputs, of shape [batch, seq, width], during the block."""
    captured = Captured()

    def keep(store: dict[str, Tensor], path: str, value: Any) -> None:
        tensor = hidden_of(value)
        # A copy: some blocks (Falcon's) add to a module's output in place after it was seen here.
        store[path] = tensor.detach().clone() if detach else tensor.clone()

    with ExitStack() as hooks:
        for path in inputs:

            def on_input(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                keep(captured.inputs, path, args if args else kwargs["hidden_states"])

            handle = model.get_submodule(path).register_forward_pre_hook(on_input, with_kwargs=True)
            hooks.callback(handle.remove)
        for path in outputs:

            def on_output(_: nn.Module, __: Any, result: Any, path: str = path) -> None:
                keep(captured.outputs, path, result)

            hooks.callback(model.get_submodule(path).register_forward_hook(on_output).remove)
        yield captured


@contextmanager
def replace(
    model: nn.Module, path: str, change: Callable[[Tensor], Tensor], *, where: Where = "output"
) -> Iterator[None]:
    """During the block, what the module takes or returns passes through ``change``, which must not work in place."""
    module = model.get_submodule(path)
    if where == "input":

        def on_input(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:

        def on_output(_: nn.Module, __: Any, result: Any) -> Any:
            return _with_hidden(result, change(hidden_of(result)))

        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def stop_at(model: nn.Module, path: str, *, where: Where = "output") -> Iterator[None]:
    """End the forward pass inside the block as soon as the module is reached (``input``) or done (``output``).

    Enter it inside :func:`capture`, so that the capture's hooks on the same module run first.
    """
    module = model.get_submodule(path)

    def halt(*_: Any) -> None:
        raise _Stop

    handle = module.register_forward_pre_hook(halt) if where == "input" else module.register_forward_hook(halt)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()


@contextmanager
def skipping(blocks: list[nn.Module], returns_tuple: bool) -> Iterator[None]:
    """Within the block, the given transformer blocks hand their input on unchanged and compute nothing."""

    def identity(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, None) if returns_tuple else hidden_states

    # An instance attribute shadows the class's method; one that was there already (device hooks put it) is put back.
    previous = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = identity
        yield
    finally:
        for block, old in zip(blocks, previous, strict=True):
            if old is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = old


@contextmanager
def gathered(model: nn.Module, head: str, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Within the block, the vocabulary projection sees only the hidden states at (row, column), as [1, n, d].

    The model's own code still runs around the projection, so scaling and soft-capping of logits stay exact.
    """

    def pick(hidden: Tensor) -> Tensor:
        at = hidden.device
        return hidden[rows.to(at), columns.to(at)].unsqueeze(0)

    with replace(model, head, pick, where="input"):
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient within the block; each one's own setting comes back after it."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout within the block; each module's own mode comes back after it."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def no_nan(tensor: Tensor) -> bool:
    """Whether every entry is finite."""
    return bool(torch.isfinite(tensor).all())
