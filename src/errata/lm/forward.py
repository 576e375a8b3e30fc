"""Forward passes that compute only what is wanted.

A :class:`SplitBatch` holds rows of tokens, each split in two. What stands left of the split is computed once and kept
as a key/value cache; each later pass runs only the rest, may start at any block from a stored hidden state, may stop
early, and projects to the vocabulary only at chosen positions. Everything runs through the model's own code (masks,
rotary positions, soft-capping), so the result equals a plain full pass up to rounding; :func:`supports_splitting`
checks that on the model itself, and where it does not hold the batch runs unsplit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from errata.lm.activations import Captured, capture, frozen, gathered, replace, skipping, stop_at
from errata.lm.language_model import LanguageModel
from errata.lm.tags import UNTAGGED, tagged
from errata.lm.tokens import pad, pad_id, positions

_supported: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class SplitBatch:
    """Rows of token ids, right of a split of which passes run again and again.

    Args:
        lm: the model.
        rows: token ids of each row, at least one more than its split.
        splits: how many of each row's first tokens are computed once (0 to recompute all).
        tags: a whole number a row, which every pass tells to hooks that ask (:mod:`errata.lm.tags`).
    """

    def __init__(
        self,
        lm: LanguageModel,
        rows: Sequence[Sequence[int]],
        splits: Sequence[int] | None = None,
        *,
        tags: Sequence[int] | None = None,
    ) -> None:
        self.lm, self._rows = lm, rows
        self.tags = torch.tensor(list(tags) if tags is not None else [UNTAGGED] * len(rows))
        self.splits = list(splits) if splits is not None and supports_splitting(lm) else [0] * len(rows)
        fill = pad_id(lm.tokenizer)
        before = [list(row[:split]) for row, split in zip(rows, self.splits, strict=True)]
        after = [list(row[split:]) for row, split in zip(rows, self.splits, strict=True)]
        # Prefixes end at one column and suffixes begin at the next, whatever their lengths.
        prefix_ids, prefix_mask = pad(before, fill, side="left")
        ids, mask = pad(after, fill, side="right")
        device = lm.device
        self._prefix_mask = prefix_mask.to(device)
        self._cache: list[tuple[Tensor, Tensor]] = []
        self._set_columns(ids.to(device), mask.to(device))
        if prefix_ids.shape[1]:
            self._fill(prefix_ids.to(device), self._prefix_mask)

    def _set_columns(self, ids: Tensor, mask: Tensor) -> None:
        self.ids, self.mask = ids, torch.cat([self._prefix_mask, mask], dim=1)
        self.positions = positions(self.mask)[:, self._prefix_mask.shape[1] :]

    def _fill(self, ids: Tensor, mask: Tensor) -> None:
        cache = DynamicCache()
        last = self.lm.architecture.blocks[-1].path
        with torch.no_grad(), tagged(self.lm.model, self.tags), stop_at(self.lm.model, last):
            self.lm.model(**model_inputs(self.lm, ids, mask, positions(mask)), past_key_values=cache, use_cache=True)
        self._cache = [real_only(layer.keys, layer.values, mask) for layer in cache.layers]

    def _with_prefixes_of(self, parents: Sequence[int]) -> SplitBatch:
        """A batch whose rows begin as the parents do; its columns right of the split are still to be set."""
        index = torch.tensor(list(parents), device=self.ids.device)
        new = SplitBatch.__new__(SplitBatch)
        new.lm, new._rows = self.lm, [self._rows[i] for i in parents]
        new.splits = [self.splits[i] for i in parents]
        new.tags = self.tags[index.cpu()]
        new._prefix_mask = self._prefix_mask[index]
        new._cache = [(k[index.to(k.device)], v[index.to(v.device)]) for k, v in self._cache]
        return new

    def select(self, keep: Sequence[int]) -> SplitBatch:
        """The same batch with only these rows, the cache included."""
        new = self._with_prefixes_of(keep)
        index = torch.tensor(list(keep), device=self.ids.device)
        new._set_columns(self.ids[index], self.mask[index, self._prefix_mask.shape[1] :])
        return new

    def branch(self, parents: Sequence[int], continuations: Sequence[Sequence[int]]) -> SplitBatch:
        """Rows that continue the whole of a parent row by other tokens, sharing what was computed of its prefix."""
        new = self._with_prefixes_of(parents)
        rows = [[*self._rows[i][self.splits[i] :], *more] for i, more in zip(parents, continuations, strict=True)]
        ids, mask = pad(rows, pad_id(self.lm.tokenizer), side="right")
        new._rows = [[*self._rows[i], *more] for i, more in zip(parents, continuations, strict=True)]
        new._set_columns(ids.to(self.ids.device), mask.to(self.ids.device))
        return new

    def split_at(self, split: int) -> SplitBatch:
        """The same rows split earlier: of their first tokens only so many are kept from what was computed once.

        For rows of one length and one split; ``split`` may be 0 but not beyond theirs. Where the model does not
        support splitting the batch itself is given back.
        """
        if not self.restartable:
            return self
        new = SplitBatch.__new__(SplitBatch)
        new.lm, new._rows, new.splits, new.tags = self.lm, self._rows, [split] * len(self._rows), self.tags
        new._prefix_mask = self._prefix_mask[:, :split]
        new._cache = [(k[:, :, :split], v[:, :, :split]) for k, v in self._cache] if split else []
        ids, mask = pad([list(row[split:]) for row in self._rows], pad_id(self.lm.tokenizer), side="right")
        new._set_columns(ids.to(self.ids.device), mask.to(self.ids.device))
        return new

    @property
    def restartable(self) -> bool:
        """Whether a pass may start at a block; where not, ``start`` and ``hidden`` are ignored and all is computed."""
        return supports_splitting(self.lm)

    def column(self, row: int, token: int) -> int:
        """Where a row's token (counted from the row's start) stands among the recomputed columns."""
        return token - self.splits[row]

    def run(
        self,
        *,
        start: int = 0,
        hidden: Tensor | None = None,
        at: tuple[Tensor, Tensor] | None = None,
        shift: tuple[str, Tensor, Tensor] | None = None,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        stop: str | None = None,
        stop_before: bool = False,
    ) -> tuple[Tensor | None, Captured]:
        """One pass over the columns right of the split.

        Args:
            start: first block to compute; the blocks below it are skipped.
            hidden: what enters block ``start``, [rows, columns, d]; needed unless ``start`` is 0.
            at: (rows, columns) of the n positions whose logits are wanted; None for none (with ``stop``) or all.
            shift: (module path, columns [rows], values [rows, d]): values added to that module's output there.
            inputs: modules whose input is captured. outputs: modules whose output is captured.
            stop: module after which the pass ends, or before which with ``stop_before``.

        Returns:
            Logits [n, vocabulary] (or [rows, columns, vocabulary] without ``at``; None when stopped), and what was
            captured, with its gradient history when one is being recorded.
        """
        lm, logits = self.lm, None
        if start and not self.restartable:
            start, hidden = 0, None
        blocks = [lm.block(i) for i in range(start)]
        with ExitStack() as stack:
            stack.enter_context(skipping(blocks, lm.architecture.blocks_return_tuple))
            if hidden is not None:
                entering = hidden
                first = lm.architecture.blocks[start].path
                stack.enter_context(replace(lm.model, first, lambda _: entering, where="input"))
            if shift is not None:
                path, columns, values = shift
                stack.enter_context(replace(lm.model, path, lambda out: add_at(out, columns, values)))
            if at is not None:
                stack.enter_context(gathered(lm.model, lm.architecture.head, *at))
            stack.enter_context(tagged(lm.model, self.tags))
            seen = stack.enter_context(capture(lm.model, inputs=inputs, outputs=outputs, detach=False))
            if stop is not None:
                stack.enter_context(stop_at(lm.model, stop, where="input" if stop_before else "output"))
            out = lm.model(**model_inputs(lm, self.ids, self.mask, self.positions), **self._cache_arguments())
            logits = out.logits[0] if at is not None else out.logits
        return logits, seen

    def _cache_arguments(self) -> dict[str, Any]:
        if not self._cache:
            return {"use_cache": False}
        cache = DynamicCache()
        for keys, values in self._cache:
            layer = DynamicLayer()
            # References, not copies: the layer's update concatenates and leaves these tensors as they are.
            layer.keys, layer.values, layer.dtype, layer.device = keys, values, keys.dtype, keys.device
            layer.is_initialized = True
            cache.layers.append(layer)
        return {"past_key_values": cache, "use_cache": True}


def real_only(keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with zeros where the mask [rows, columns] is 0.

    A row whose token may look at nothing gets NaN from some kernels, and 0 x NaN would spread to its other tokens.
    """
    padding = ~mask[:, None, :, None].to(keys.device, torch.bool)
    return keys.masked_fill(padding, 0.0), values.masked_fill(padding, 0.0)


def add_at(hidden: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """``hidden`` [rows, columns, d] (or its rows flattened) with ``values`` [rows, d] added at one column a row."""
    rows = torch.arange(len(columns), device=hidden.device)
    shaped = hidden if hidden.ndim == 3 else hidden.view(len(columns), -1, hidden.shape[-1])
    change = torch.zeros_like(shaped).index_put((rows, columns.to(hidden.device)), values.to(shaped))
    return (shaped + change).view_as(hidden)


def model_inputs(lm: LanguageModel, ids: Tensor, mask: Tensor, where: Tensor) -> dict[str, Tensor]:
    """What a pass is called with: ids and positions [rows, new columns], mask [rows, cached and new columns]."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if lm.architecture.accepts_positions:
        inputs["position_ids"] = where
    return inputs


def supports_splitting(lm: LanguageModel) -> bool:
    """Whether a split, restarted pass equals a plain one on this model (checked once, on a few tokens)."""
    if lm.model not in _supported:
        _supported[lm.model] = True  # the check itself runs a split batch
        try:
            _supported[lm.model] = _splitting_agrees(lm)
        except Exception:  # any failure of the shortcut means: do without it
            _supported[lm.model] = False
    return _supported[lm.model]


def _splitting_agrees(lm: LanguageModel) -> bool:
    size = lm.architecture.vocabulary
    rows = [[(3 + 7 * i) % size for i in range(n)] for n in (9, 6, 4)]
    splits = [5, 0, 3]
    start = min(1, lm.num_layers - 1)
    with torch.no_grad(), frozen(lm.model):
        batch = SplitBatch(lm, rows, splits)
        block = lm.architecture.blocks[start].path
        _, seen = batch.run(inputs=[block], stop=block, stop_before=True)
        last = (torch.arange(3), torch.tensor([len(r) - 1 - s for r, s in zip(rows, splits, strict=True)]))
        fast, _ = batch.run(start=start, hidden=seen.inputs[block], at=last)
        for i, row in enumerate(rows):
            plain = lm.model(input_ids=torch.tensor([row], device=lm.device)).logits[0, -1].float()
            # A loose bound in low precision: a wrong mask or position moves logits by far more than rounding does.
            tolerance = (1e-3 if lm.dtype == torch.float32 else 5e-2) * float(1 + plain.abs().max())
            if fast is None or not bool((fast[i].float().to(plain.device) - plain).abs().max() < tolerance):
                return False
    return True


def next_token_logits(lm: LanguageModel, rows: Sequence[Sequence[int]], *, tags: Sequence[int] | None = None) -> Tensor:
    """Logits [rows, vocabulary] after the last token of each row, in float32; ``tags`` as in :class:`SplitBatch`."""
    batch = SplitBatch(lm, rows, tags=tags)
    last = torch.tensor([len(row) - 1 for row in rows])
    with torch.no_grad():
        logits, _ = batch.run(at=(torch.arange(len(rows)), last))
    if logits is None:
        raise RuntimeError("a pass that was not stopped gives logits")
    return logits.float()
