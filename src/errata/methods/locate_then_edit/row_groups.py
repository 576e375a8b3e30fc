"""Rows of one edit or many, cut into batches of like length: each is one pass, in which little is padding.

A row is a prompt with its target under one context, or an edit's essence row. What stands left of the subject's last
token, and what stands right of it up to the edited layer, is computed once; a pass begins there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import NumericalError
from errata.lm.activations import replace
from errata.lm.forward import SplitBatch, add_at
from errata.lm.language_model import LanguageModel
from errata.methods.locate_then_edit.rewrites import Rewrite
from errata.methods.locate_then_edit.value_types import Site

COLUMNS_AT_ONCE = {"cpu": 512}  # tokens of one pass: more only take memory there
COLUMNS_ELSEWHERE = 4096
PASS_COLUMNS = 24  # a further pass costs about as much as so many more tokens in one, mostly in Python


@dataclass(frozen=True)
class ValueRow:
    """A row to run.

    Attributes:
        edit: which edit it belongs to. context: which context, or None for the essence row.
        ids: its tokens. lookup: where the subject's last token is.
        spots: (token index, wanted next token) of each target token.
    """

    edit: int
    context: int | None
    ids: tuple[int, ...]
    lookup: int
    spots: tuple[tuple[int, int], ...]

    @property
    def columns(self) -> int:
        """Tokens from the subject's last one on."""
        return len(self.ids) - self.lookup


def value_rows(rewrites: Sequence[Rewrite]) -> list[ValueRow]:
    """Every row of every edit."""
    rows: list[ValueRow] = []
    for e, rewrite in enumerate(rewrites):
        for c, (row, prompt) in enumerate(zip(rewrite.training_rows(), rewrite.prompts, strict=True)):
            spots = tuple((len(prompt.ids) - 1 + j, token) for j, token in enumerate(rewrite.target))
            rows.append(ValueRow(e, c, row.ids, row.lookup, spots))
        rows.append(ValueRow(e, None, rewrite.essence.ids, rewrite.essence.lookup, ()))
    return rows


def grouped(rows: Sequence[ValueRow], most: int) -> list[list[ValueRow]]:
    """The rows in batches of at most ``most`` padded tokens (or one row), at the least cost of padding and passes."""
    order = sorted(rows, key=lambda row: row.columns)
    longest = [row.columns for row in order]
    best: list[tuple[int, int]] = [(0, 0)]  # of the first i rows: (cost, where the last batch begins)
    for end in range(1, len(order) + 1):
        width, choice = longest[end - 1], None
        for start in range(end - 1, -1, -1):
            size = (end - start) * width
            if size > most and start < end - 1:
                break
            cost = best[start][0] + size + PASS_COLUMNS
            if choice is None or cost < choice[0]:
                choice = (cost, start)
        best.append(choice or (0, end - 1))
    cuts, end = [], len(order)
    while end:
        start = best[end][1]
        cuts.append(order[start:end])
        end = start
    return cuts[::-1]


@dataclass(frozen=True)
class Measured:
    """What a group's first pass saw at the subject, per row.

    Attributes:
        key: input of W [m]. output: W's output [d]. block: the block's [d]. attention: the attention's [d].
    """

    key: Tensor
    output: Tensor
    block: Tensor
    attention: Tensor


class RowGroup:
    """Rows that run as one batch, again and again, under a shift at the subject's last token.

    Args:
        lm: the model.
        rows: the rows.
        layer: where the shift is added.
        site: at which outputs.
    """

    def __init__(self, lm: LanguageModel, rows: Sequence[ValueRow], layer: int, site: Site) -> None:
        self.lm, self.layer, self.site = lm, layer, site
        self.batch = SplitBatch(lm, [row.ids for row in rows], [row.lookup for row in rows])
        self._set_rows(rows)
        self._measure()

    def _set_rows(self, rows: Sequence[ValueRow]) -> None:
        self.rows = list(rows)
        self.lookup = torch.tensor([self.batch.column(i, row.lookup) for i, row in enumerate(rows)])
        spots = [
            (i, self.batch.column(i, at), token, row.edit, 1.0 / len(row.spots))
            for i, row in enumerate(rows)
            for at, token in row.spots
        ]
        essence = [i for i, row in enumerate(rows) if row.context is None]
        self.edits = torch.tensor([row.edit for row in rows])
        self.at_rows = torch.tensor([s[0] for s in spots] + essence, dtype=torch.long)
        at_columns = torch.tensor([s[1] for s in spots], dtype=torch.long)
        self.at_columns = torch.cat([at_columns, self.lookup[essence]])
        self.wanted = torch.tensor([s[2] for s in spots], dtype=torch.long)
        self.owners = torch.tensor([s[3] for s in spots], dtype=torch.long)
        self.shares = torch.tensor([s[4] for s in spots])
        self.held = self.edits[essence]  # the edits of the essence rows

    def _measure(self) -> None:
        """One pass up to the edited layer: what W takes and gives, and the state from which every step starts."""
        lm, batch = self.lm, self.batch
        block = lm.layer(self.layer)
        out, attention = block.out_projection, block.attention_output
        with torch.no_grad():
            _, seen = batch.run(inputs=[out, block.path], outputs=[out, attention, block.path], stop=block.path)
        rows = torch.arange(len(self.rows))

        def at_lookup(tensor: Tensor) -> Tensor:
            at = tensor.device
            return tensor.reshape(*batch.ids.shape, -1)[rows.to(at), self.lookup.to(at)].float()

        self.seen = Measured(
            at_lookup(seen.inputs[out]), at_lookup(seen.outputs[out]), at_lookup(seen.outputs[block.path]),
            at_lookup(seen.outputs[attention]),
        )  # fmt: skip
        self.shifted: str | None
        if self.site != "mlp and attention" and block.additive and batch.restartable:
            # W's output is added to the stream as it is, so the shift can be added behind the block: one block less.
            self.entry, self.first, self.shifted = seen.outputs[block.path], self.layer + 1, None
        else:
            self.entry, self.first, self.shifted = seen.inputs[block.path], self.layer, out

    def select(self, keep: Sequence[int]) -> RowGroup:
        """The same batch with only these of its rows."""
        new = RowGroup.__new__(RowGroup)
        new.lm, new.layer, new.site = self.lm, self.layer, self.site
        new.first, new.shifted = self.first, self.shifted
        new.batch = self.batch.select(keep)
        new._set_rows([self.rows[i] for i in keep])
        new.entry = self.entry[torch.tensor(list(keep), device=self.entry.device)]
        return new

    @property
    def columns(self) -> int:
        """Tokens of one pass, padding included."""
        return self.batch.ids.numel()

    def run(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """One pass under each edit's δ [n, parts, d]: the MLP's or the block's, then the attention's if it has one.

        Returns:
            Log-probabilities where target tokens are wanted [spots, vocabulary], and at the essence rows [held,
            vocabulary].
        """
        if self.first == self.lm.num_layers:
            raise NumericalError(f"Layer {self.layer} is the last one, so nothing reads the edit: choose a lower one.")
        values = delta[self.edits.to(delta.device)]
        shift = None if self.shifted is None else (self.shifted, self.lookup, values[:, 0])
        entry = self.entry if self.shifted is not None else add_at(self.entry, self.lookup, values[:, 0])
        with self._attention_shifted(values):
            logits, _ = self.batch.run(start=self.first, hidden=entry, at=(self.at_rows, self.at_columns), shift=shift)
        if logits is None:
            raise RuntimeError("a pass that was not stopped gives logits")
        logs = torch.log_softmax(logits.float(), dim=-1)
        n = len(self.wanted)
        return logs[:n].to(delta.device), logs[n:].to(delta.device)

    def _attention_shifted(self, values: Tensor) -> AbstractContextManager[None]:
        if self.site != "mlp and attention":
            return nullcontext()
        path = self.lm.layer(self.layer).attention_output
        return replace(self.lm.model, path, lambda out: add_at(out, self.lookup, values[:, 1]))


def start_of(measured: Measured, lm: LanguageModel, layer: int, site: Site) -> Tensor:
    """v0 of each row [rows, parts, d]: the block's output (MEMIT), or W's (ROME, and wherever a norm follows the MLP).

    With the attention's output as a second part where that is shifted too (PMET).
    """
    if site == "mlp and attention":
        return torch.stack([measured.output, measured.attention], dim=1)
    return (measured.block if site == "block" and lm.layer(layer).additive else measured.output)[:, None]
