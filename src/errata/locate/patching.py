"""One prompt, clean and corrupted, and the corrupted run again with clean values put back at some token.

The plain way runs the whole prompt through the whole model for every (token, layer). Here nothing is computed that a
restoration cannot change (tests/reference/plain_trace.py is the plain way, and gives the same):

* attention is causal, so left of the restored token all is as in the corrupted run: its keys and values are kept;
* what is below the restored layer is as in the corrupted run: its hidden states are kept;
* many (token, layer) cells of one token run as one batch, sorted by layer, which starts at the lowest one;
* logits are computed only where the answer is read off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from errata.lm import LanguageModel
from errata.lm.activations import Captured, replace
from errata.lm.forward import SplitBatch, supports_splitting

# What a layer costs besides its tokens, in tokens: little on a processor, much on a GPU.
OVERHEAD, OVERHEAD_ELSEWHERE = {"cpu": 30}, 1024
MOST_TOKENS = 16384  # of one pass, for memory


@dataclass(frozen=True)
class Cell:
    """One restoration at one token.

    Attributes:
        start: the first block that it changes anything in.
        state: what enters that block at the token [d], or at as many tokens from it on as there are rows [tokens, d];
            None to leave it as it is.
        forced: what modules give at the token: path -> [d], or [samples, d] with a row for each corrupted run.
    """

    start: int
    state: Tensor | None = None
    forced: dict[str, Tensor] = field(default_factory=dict)


class Patching:
    """A prompt whose subject is corrupted, and what restoring clean values does to its continuations.

    Args:
        lm: the model.
        prompt: token ids.
        continuations: token ids of each; all share all tokens but their last, so that one pass reads them all.
        subject: positions (first, one after the last) in the prompt.
        corrupted: what the subject's embeddings become [samples, tokens of the subject, d].
        outputs: modules whose outputs are wanted for restoring or for severing.

    Attributes:
        clean: log-probabilities of the continuations' tokens in the clean run [tokens, continuations].
        corrupted: the same in the corrupted runs [samples, tokens, continuations].
        rivals: the two tokens that the corrupted runs, taken together, hold likeliest as the next one.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompt: Sequence[int],
        continuations: Sequence[Sequence[int]],
        subject: tuple[int, int],
        corrupted: Tensor,
        *,
        outputs: Sequence[str] = (),
    ) -> None:
        fed = list(continuations[0][:-1])
        if any(list(other[:-1]) != fed for other in continuations):
            raise ValueError("Continuations of one pass share all tokens but their last: trace the others apart.")
        self.lm, self._prompt, self._subject = lm, len(prompt), subject
        self._row = [*prompt, *fed]
        self._wanted = torch.tensor([[t[j] for t in continuations] for j in range(len(fed) + 1)], device=lm.device)
        self._embeddings, self.samples = corrupted, len(corrupted)
        supports_splitting(lm)  # found out once a model, and not while hooks corrupt its embeddings
        self._inputs = [block.path for block in lm.architecture.blocks]
        self._outputs = [*outputs, self._inputs[-1]]
        self.clean, self._clean = self._whole(1)
        self.clean = self.clean[0]
        with self._corrupting(1):
            self.corrupted, self._corrupted = self._whole(self.samples)
            self._kept = SplitBatch(lm, [self._row] * self.samples, [len(self._row) - 1] * self.samples)

    # --- What is seen in the clean and in the corrupted runs -----------------------------------------------------

    def clean_state(self, block: int, token: int, count: int = 1) -> Tensor:
        """What enters a block (or leaves the last one) in the clean run at ``count`` tokens from one on: [count, d]."""
        last = block == len(self._inputs)
        seen = self._clean.outputs[self._inputs[-1]] if last else self._clean.inputs[self._inputs[block]]
        return seen[0, token : token + count]

    def clean_output(self, path: str, token: int) -> Tensor:
        """What a module gives at a token in the clean run: [d]."""
        return self._shaped(self._clean.outputs[path], 1)[0, token]

    def corrupted_output(self, path: str, token: int) -> Tensor:
        """What a module gives at a token in the corrupted runs: [samples, d]."""
        return self._shaped(self._corrupted.outputs[path], self.samples)[:, token]

    # --- Restoring ----------------------------------------------------------------------------------------------

    def restored(self, token: int, cells: Sequence[Cell]) -> Tensor:
        """Log-probabilities [cells, samples, tokens, continuations] in the corrupted runs with each restoration."""
        result = self.corrupted.new_empty(len(cells), *self.corrupted.shape)
        batch = self._kept.split_at(min(token, len(self._row) - 1))
        passed: list[int] = []
        for i, cell in enumerate(cells):
            if cell.start < self.lm.num_layers:
                passed.append(i)
            else:  # above the last block: only what is read off this very token changes
                result[i] = self.corrupted
                at = token - self._prompt + 1
                count = len(cell.state) if cell.state is not None and cell.state.ndim == 2 else 1
                result[i, :, max(0, at) : max(0, at + count)] = self.clean[max(0, at) : max(0, at + count)]
        passed.sort(key=lambda i: cells[i].start)
        for some in self._groups(passed, len(self._row) - token):
            result[some] = self._pass(batch, token, [cells[i] for i in some])
        return result

    def _groups(self, order: Sequence[int], columns: int) -> Iterator[list[int]]:
        # A cell that shares a pass with lower ones runs layers that it need not, half as many as there are cells. With
        # c cells of k tokens in L layers a cell costs (L + c) (1 + overhead / (c k)): least at c = √(L overhead / k).
        tokens = self.samples * columns
        overhead = OVERHEAD.get(self.lm.device.type, OVERHEAD_ELSEWHERE)
        best = round(math.sqrt(self.lm.num_layers * overhead / tokens))
        size = max(1, min(best, MOST_TOKENS // tokens))
        for at in range(0, len(order), size):
            yield list(order[at : at + size])

    @torch.no_grad()
    def _pass(self, kept: SplitBatch, token: int, cells: Sequence[Cell]) -> Tensor:
        batch = kept.select(list(range(self.samples)) * len(cells))
        column, start = batch.column(0, token), cells[0].start
        with ExitStack() as stack:
            hidden = None
            if batch.restartable:
                hidden = self._corrupted.inputs[self._inputs[start]][:, token:].repeat(len(cells), 1, 1)
            else:
                stack.enter_context(self._corrupting(len(cells)))
            states: dict[int, list[tuple[slice, Tensor]]] = {}
            forced: dict[str, list[tuple[slice, Tensor]]] = {}
            for i, cell in enumerate(cells):
                rows = slice(i * self.samples, (i + 1) * self.samples)
                if cell.state is not None and cell.start == start and hidden is not None:
                    _put(hidden, rows, column, cell.state)
                elif cell.state is not None:
                    states.setdefault(cell.start, []).append((rows, cell.state))
                for path, value in cell.forced.items():
                    forced.setdefault(path, []).append((rows, value[:, None] if value.ndim == 2 else value))
            for block, puts in states.items():
                stack.enter_context(self._putting(self._inputs[block], batch, column, puts, "input"))
            for path, puts in forced.items():
                stack.enter_context(self._putting(path, batch, column, puts, "output"))
            logits, _ = batch.run(start=start, hidden=hidden, at=self._spots(batch, len(batch.ids)))
        return self._read(logits, len(batch.ids)).view(len(cells), *self.corrupted.shape)

    # --- Parts ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _whole(self, rows: int) -> tuple[Tensor, Captured]:
        batch = SplitBatch(self.lm, [self._row] * rows)
        logits, seen = batch.run(at=self._spots(batch, rows), inputs=self._inputs, outputs=self._outputs)
        if logits is not None:
            first = logits.view(rows, len(self._wanted), -1)[:, 0].float().softmax(-1).mean(0)
            self.rivals: list[int] = first.topk(2).indices.tolist()
        return self._read(logits, rows), seen

    def _spots(self, batch: SplitBatch, rows: int) -> tuple[Tensor, Tensor]:
        columns = torch.arange(self._prompt - 1, len(self._row)) - batch.splits[0]
        return torch.arange(rows).repeat_interleave(len(columns)), columns.repeat(rows)

    def _read(self, logits: Tensor | None, rows: int) -> Tensor:
        if logits is None:
            raise RuntimeError("a pass that was not stopped gives logits")
        shaped = logits.float().view(rows, len(self._wanted), -1)
        wanted = self._wanted.to(shaped.device).expand(rows, -1, -1)
        return shaped.gather(-1, wanted) - shaped.logsumexp(-1, keepdim=True)

    @contextmanager
    def _corrupting(self, times: int) -> Iterator[None]:
        first, end = self._subject

        def change(out: Tensor) -> Tensor:
            changed = out.clone()
            here = changed[:, first:end]
            here.copy_(self._embeddings.repeat(times, 1, 1)[:, : here.shape[1]])
            return changed

        with replace(self.lm.model, self.lm.architecture.embedding, change):
            yield

    @contextmanager
    def _putting(
        self, path: str, batch: SplitBatch, column: int, puts: Sequence[tuple[slice, Tensor]], where: str
    ) -> Iterator[None]:
        def change(out: Tensor) -> Tensor:
            changed = self._shaped(out, len(batch.ids)).clone()
            for rows, value in puts:
                _put(changed, rows, column, value)
            return changed.view_as(out)

        with replace(self.lm.model, path, change, where="input" if where == "input" else "output"):
            yield

    @staticmethod
    def _shaped(tensor: Tensor, rows: int) -> Tensor:
        """[rows, columns, d] also where a module works on flattened rows."""
        return tensor if tensor.ndim == 3 else tensor.view(rows, -1, tensor.shape[-1])


def _put(hidden: Tensor, rows: slice, column: int, value: Tensor) -> None:
    """Write [d], [tokens, d] or [samples, 1, d] into some rows, from a column on."""
    wide = value if value.ndim == 3 else value.reshape(1, -1, value.shape[-1])
    hidden[rows, column : column + wide.shape[1]] = wide.to(hidden)
