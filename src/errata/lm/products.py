"""Faster products with a model's frozen linear layers on a processor: equal to rounding, or in bfloat16 on request.

PyTorch multiplies float32 matrices through a library that, on processors of some makers, does not use their widest
instructions; oneDNN, which is built into PyTorch as well, does. Within :func:`fast_products` the linear layers of a
model whose weights ask for no gradient call it directly: about twice as fast there, and no slower elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Precision = Literal["float32", "bfloat16"]
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@contextmanager
def fast_products(model: nn.Module, precision: Precision = "float32") -> Iterator[None]:
    """Within the block, the model's frozen float32 linear layers on the processor multiply by the fastest means.

    Layers that ask for gradients, are of another type, or stand on another device are left as they are, and so is the
    whole model where the processor has no such means.

    Args:
        model: the model.
        precision: "bfloat16" rounds both factors (sums stay in float32), twice as fast again on processors that have
            such instructions; it keeps a second copy of the weights, half their size, within the block. Where the
            processor has none, it means "float32".
    """
    low = precision == "bfloat16" and has_bfloat16()
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        if low or has_onednn():
            for module in model.modules():
                if _replaceable(module):
                    replaced.append((module, module.__dict__.get("forward")))
                    module.forward = _low_forward(module) if low else _forward(module)
        yield
    finally:
        for module, before in replaced:
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = before


@cache
def has_onednn() -> bool:
    """Whether oneDNN's float32 product is here, right, and written for this processor's widest instructions."""
    available: Any = torch.backends.mkldnn.is_available
    if not available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.randn(5, 64, generator=generator), torch.randn(48, 64, generator=generator)
        back = _onednn(x @ weight.T, weight.T, None)
        return bool(
            torch.allclose(_onednn(x, weight, None), x @ weight.T, atol=1e-4)
            and torch.allclose(back, x @ weight.T @ weight, atol=1e-2)
        )
    except Exception:  # the operator is PyTorch's own and may change: then the ordinary product is used
        return False


@cache
def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by instructions of its own."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except AttributeError:
        return False


class _Replacement:
    """A linear layer's forward: a product of its weight [out, in] as it is at each call, or of a copy made before."""

    def __init__(self, module: nn.Module, product: Product, copy: Tensor | None = None) -> None:
        self._module, self._product, self._copy = module, product, copy

    def __call__(self, x: Tensor) -> Tensor:
        bias: Any = self._module.bias
        if x.dtype != torch.float32 or x.numel() == 0:
            weight = _weight(self._module).to(x.dtype)
            return nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        factor = _weight(self._module) if self._copy is None else self._copy
        result: Tensor = _FrozenProduct.apply(x, factor, bias, self._product)  # type: ignore[no-untyped-call]
        return result


def _replaceable(module: nn.Module) -> bool:
    # Exactly these types: what a subclass adds (an adapter, packed weights) would be lost.
    if type(module) not in (nn.Linear, Conv1D):
        return False
    if not isinstance(module.__dict__.get("forward"), _Replacement | None):
        return False  # a device hook's own
    tensors = [tensor for tensor in (module.weight, module.bias) if tensor is not None]
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and not t.requires_grad for t in tensors)


def _weight(module: nn.Module) -> Tensor:
    weight: Any = module.weight
    plain: Tensor = weight.detach()
    return plain.T if isinstance(module, Conv1D) else plain


def _forward(module: nn.Module) -> _Replacement:
    return _Replacement(module, _onednn)


def _low_forward(module: nn.Module) -> _Replacement:
    return _Replacement(module, _bfloat16, _weight(module).bfloat16())


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ + b with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, product: Product) -> Tensor:
        ctx.weight, ctx.product = weight, product
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.product(gradients[0], ctx.weight.T, None), None, None, None


def gram(rows: Tensor) -> Tensor:
    """XᵀX of float32 rows X [n, m], [m, m], without a gradient, by the fastest means."""
    columns = rows.detach().T
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.numel() and has_onednn():
        return _onednn(columns, columns, None)
    return columns @ columns.T


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result = nn.functional.linear(x.bfloat16(), weight).float()
    return result if bias is None else result + bias
