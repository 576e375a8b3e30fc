"""LoRA adapters by ``peft``, put into a model for a while and taken out again without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import ErrataError
from errata.lm.language_model import LanguageModel
from errata.methods.fine_tuning.config import block_modules
from errata.patch import LowRank, Update

NAME = "errata"


@dataclass(frozen=True)
class AdapterShape:
    """What the adapters are: rank r, scale alpha / r, and the share of their input that dropout silences."""

    rank: int
    alpha: float
    dropout: float
    seed: int


class Adapters:
    """``W + alpha / r · B A`` on some matrices of some layers, A drawn at random and B zero: one problem.

    ``peft`` replaces the modules by wrappers around them; the weights inside are the model's own and are not written.
    """

    def __init__(self, lm: LanguageModel, layers: Sequence[int], targets: tuple[str, ...], shape: AdapterShape) -> None:
        self.first = min(layers)
        self._lm, self._shape = lm, shape
        self._paths = [path for layer in layers for path in block_modules(lm, layer, targets)]
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}  # path -> (A [r, d_in], B [d_out, r])
        self._peft = _import_peft()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """See :class:`errata.methods.fine_tuning.weights.Weights`."""
        from transformers.pytorch_utils import Conv1D

        model, shape = self._lm.model, self._shape
        plain = {path: model.get_submodule(path) for path in self._paths}
        known = model.__dict__.get("peft_config")
        config = self._peft.LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            target_modules=list(self._paths),
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in plain.values()),
            bias="none",
        )
        devices = sorted({w.device.index for w in model.parameters() if w.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(shape.seed)
            try:
                self._peft.inject_adapter_in_model(config, model, adapter_name=NAME)
                self._pairs = {path: _pair(model.get_submodule(path)) for path in self._paths}
                yield
            finally:
                for path, module in plain.items():
                    parent, _, name = path.rpartition(".")
                    setattr(model.get_submodule(parent), name, module)
                if known is None:
                    model.__dict__.pop("peft_config", None)
                else:
                    model.peft_config = known

    def assign(self, owners: Sequence[int]) -> None:
        """There is one problem, so every row is its."""

    def tensors(self, problem: int) -> list[Tensor]:
        """All factors."""
        return [factor for pair in self._pairs.values() for factor in pair]

    def updates(self, problem: int) -> list[Update]:
        """One low-rank update a matrix."""
        from transformers.pytorch_utils import Conv1D

        scale = self._shape.alpha / self._shape.rank
        return [
            LowRank(f"{path}.weight", scale * b.detach(), a.detach(), isinstance(self._module(path), Conv1D))
            for path, (a, b) in self._pairs.items()
        ]

    def _module(self, path: str) -> Any:
        return self._lm.model.get_submodule(path)


def _pair(layer: Any) -> tuple[Tensor, Tensor]:
    """An adapter's two factors, made float32 where the model is narrower."""
    factors = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    for factor in factors:
        factor.data = factor.data.to(torch.promote_types(factor.dtype, torch.float32))
    return factors


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ErrataError("LoRA editing needs peft, which is not installed: pip install 'errata[lora]'.") from error
    return peft
