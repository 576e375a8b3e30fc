"""What the edited layers see at the subject's last token: keys, and the states MEMIT's residuals are taken from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from errata.lm.forward import SplitBatch
from errata.lm.language_model import LanguageModel
from errata.methods.locate_then_edit.rewrites import Rewrite, Row

ROWS_AT_ONCE = 256
KEPT_BYTES = 1 << 30  # of hidden states below the edited layers; past that they are computed again when asked


def context_weights(contexts: int, *, bare: float) -> Tensor:
    """Weights [contexts], float64, summing to one: ``bare`` for the bare prompt, the rest spread over the others.

    MEMIT averages within each kind of context first (bare = 1/2); ROME weighs all alike (bare = 1/contexts).
    """
    if contexts == 1:
        return torch.ones(1, dtype=torch.float64)
    weights = torch.full((contexts,), (1.0 - bare) / (contexts - 1), dtype=torch.float64)
    weights[0] = bare
    return weights


class KeySweep:
    """Keys and states of many edits, layer by layer upwards, while lower layers are being edited.

    Everything below the first edited layer is computed once and kept; each question then runs only the blocks from
    there to the layer asked, so n edits of r layers cost one lower pass and not 2r whole ones. Where the edits are so
    many that what is kept would fill the memory, the rest is computed from the bottom at each question. An opening
    that stands before all edits runs once a question, and not once an edit.

    Args:
        lm: the model, whose edited weights may change between questions.
        rewrites: the edits, each under its contexts.
        first: the lowest layer that will be edited.
    """

    def __init__(self, lm: LanguageModel, rewrites: Sequence[Rewrite], first: int) -> None:
        self.lm, self.first, self.contexts, self.edits = lm, first, len(rewrites[0].prompts), len(rewrites)
        self._rows = [row for rewrite in rewrites for row in rewrite.key_rows()]
        self._openings = [_opening(self._rows[context :: self.contexts]) for context in range(self.contexts)]
        own = [len(row.ids) - len(self._openings[i % self.contexts]) for i, row in enumerate(self._rows)]
        order = sorted(range(len(own)), key=own.__getitem__)
        self._chunks: list[tuple[list[int], Tensor | None]] = []
        entry, kept, shared = lm.architecture.blocks[first].path, 0, self._shared()
        for at in range(0, len(order), ROWS_AT_ONCE):
            chosen, entering = order[at : at + ROWS_AT_ONCE], None
            if kept < KEPT_BYTES:
                with torch.no_grad():
                    _, seen = self._batch(shared, chosen).run(inputs=[entry], stop=entry, stop_before=True)
                entering = seen.inputs[entry]
                kept += entering.nbytes
            self._chunks.append((chosen, entering))

    def _shared(self) -> SplitBatch:
        """The openings, each a row; their keys and values are those of the weights as they are now."""
        return SplitBatch(self.lm, self._openings, [max(0, len(opening) - 1) for opening in self._openings])

    def _batch(self, shared: SplitBatch, chosen: Sequence[int]) -> SplitBatch:
        contexts = [i % self.contexts for i in chosen]
        rest = [self._rows[i].ids[len(self._openings[c]) :] for i, c in zip(chosen, contexts, strict=True)]
        return shared.branch(contexts, rest)

    def keys(self, layer: int) -> Tensor:
        """Input of W at the subject in each context, [edits, contexts, m] float32."""
        path = self.lm.layer(layer).out_projection
        return self._stacked(self._passes(inputs=[path], stop=path), path)

    def mean_keys(self, layers: Sequence[int], weights: Tensor) -> dict[int, Tensor]:
        """Each layer's keys averaged over contexts by weights [contexts]: K, [m, edits] float64, all from one pass."""
        paths = {layer: self.lm.layer(layer).out_projection for layer in layers}
        means: dict[int, Tensor] = {}
        for rows, seen in self._passes(inputs=list(paths.values()), stop=paths[max(layers)]):
            edits, shares = torch.tensor(rows) // self.contexts, weights[torch.tensor(rows) % self.contexts]
            for layer, path in paths.items():
                keys = seen[path].double()
                if layer not in means:
                    means[layer] = keys.new_zeros(self.edits, keys.shape[-1])
                means[layer].index_add_(0, edits.to(keys.device), keys * shares.to(keys)[:, None])
        return {layer: mean.T for layer, mean in means.items()}

    def states(self, layer: int, *, of_block: bool) -> Tensor:
        """Output of the block, or of W, at the subject of the bare prompts, [edits, d] float32."""
        block = self.lm.layer(layer)
        path = block.path if of_block else block.out_projection
        return self._stacked(self._passes(outputs=[path], stop=path, bare_only=True), path)[:, 0]

    def _passes(
        self, *, inputs: Sequence[str] = (), outputs: Sequence[str] = (), stop: str, bare_only: bool = False
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """For each batch the rows it holds, and what the modules take (or give) at their subjects, [rows, width]."""
        shared = self._shared()
        for chosen, entering in self._chunks:
            keep = [i for i, row in enumerate(chosen) if not bare_only or row % self.contexts == 0]
            if not keep:
                continue
            rows = [chosen[i] for i in keep]
            batch = self._batch(shared, rows)
            columns = [batch.column(i, self._rows[row].lookup) for i, row in enumerate(rows)]
            entry = None if entering is None else entering[keep][:, : batch.ids.shape[1]]
            start = 0 if entry is None else self.first
            with torch.no_grad():
                _, seen = batch.run(
                    start=start, hidden=entry, inputs=inputs, outputs=outputs, stop=stop, stop_before=bool(inputs)
                )
            found = {}
            for path, tensor in {**seen.inputs, **seen.outputs}.items():
                shaped = tensor.reshape(*batch.ids.shape, -1)
                found[path] = shaped[range(len(rows)), columns].float()
            yield rows, found

    def _stacked(self, passes: Iterator[tuple[list[int], dict[str, Tensor]]], path: str) -> Tensor:
        """One module's rows in the order of the edits, [edits, rows an edit, width]."""
        found = {row: value for rows, seen in passes for row, value in zip(rows, seen[path], strict=True)}
        stacked = torch.stack([found[row] for row in sorted(found)])
        return stacked.view(self.edits, -1, stacked.shape[-1])


def _opening(rows: Sequence[Row]) -> tuple[int, ...]:
    """The tokens that all rows of a context begin with, the subject's last token never among them."""
    shortest = min(row.lookup for row in rows)
    columns = zip(*(row.ids[:shortest] for row in rows), strict=True)
    return tuple(ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, columns))
