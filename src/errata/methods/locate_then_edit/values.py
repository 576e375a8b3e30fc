"""Which hidden state at the subject makes the model say the new object: one optimiser for all methods.

For each edit a shift δ of one hidden state, at the subject's last token, is found by Adam so that every context's
prompt is continued by the target (ROME, equation 4; MEMIT, equation 16):

    loss = mean_contexts NLL(target) + kl_weight · KL(p_δ ‖ p_0 at "<subject> is a") + decay · ‖δ‖ / ‖v0‖²

with ‖δ‖ held below clamp · ‖v0‖. The edits are independent problems, so they run as one batch with one Adam state a
row and stop one by one. What does not depend on δ is computed once: everything left of the subject's last token (a
key/value cache) and, to its right, everything up to the edited layer. Only the target's positions are projected to the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from errata.errors import NumericalError
from errata.lm.activations import frozen
from errata.lm.forward import SplitBatch, add_at
from errata.lm.language_model import LanguageModel
from errata.methods.locate_then_edit.rewrites import Rewrite
from errata.methods.locate_then_edit.store import KnownValue, ValueStore, chunk_key
from errata.progress import Task, task

Site = Literal["mlp", "block"]
ROWS_AT_ONCE = 256
EDITS_AT_ONCE = 64  # so many at most share a chunk: what an interruption can lose of a stored optimisation
REPACK_BELOW = 0.75  # a smaller batch is cut out when so few of its edits still run: each cut copies the caches


@dataclass(frozen=True)
class ValueSettings:
    """Knobs of the optimisation; see the configurations for their meaning."""

    steps: int
    learning_rate: float
    weight_decay: float
    clamp: float
    kl_weight: float
    stop_loss: float


@dataclass(frozen=True)
class Values:
    """What the optimiser found, for n edits under c contexts.

    Attributes:
        delta: [n, d] float32, the shift of each.
        start: [n, d] float32, v0: the unshifted state at the bare prompt.
        keys: [n, c, m] float32, input of W at the subject in each context; [n, 0, m] where they were not kept.
        outputs: [n, c, d] float32, output of W there; [n, 0, d] where they were not kept.
        losses: [n], the last loss of each. steps: [n], how many passes each took.
    """

    delta: Tensor
    start: Tensor
    keys: Tensor
    outputs: Tensor
    losses: list[float]
    steps: list[int]

    @staticmethod
    def joined(parts: Sequence[Values], order: Sequence[int]) -> Values:
        """Chunks put together, back in the order in which the edits were asked (row i belongs to edit ``order[i]``)."""
        back = sorted(range(len(order)), key=order.__getitem__)
        losses = [x for part in parts for x in part.losses]
        steps = [x for part in parts for x in part.steps]
        return Values(
            delta=torch.cat([part.delta for part in parts])[back],
            start=torch.cat([part.start for part in parts])[back],
            keys=torch.cat([part.keys for part in parts])[back],
            outputs=torch.cat([part.outputs for part in parts])[back],
            losses=[losses[i] for i in back],
            steps=[steps[i] for i in back],
        )

    def known(self, i: int) -> KnownValue:
        """The value of edit i alone, as ``optimise_values(known=...)`` takes it."""
        return KnownValue(self.delta[i], self.start[i], self.losses[i], self.steps[i])

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for a :class:`ValueStore`."""
        return {
            "delta": self.delta, "start": self.start, "keys": self.keys, "outputs": self.outputs,
            "losses": torch.tensor(self.losses, dtype=torch.float64), "steps": torch.tensor(self.steps),
        }  # fmt: skip

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Values:
        """The inverse of :meth:`tensors`."""
        moved = {name: tensors[name].to(device) for name in ("delta", "start", "keys", "outputs")}
        return cls(**moved, losses=tensors["losses"].tolist(), steps=tensors["steps"].tolist())


def optimise_values(
    lm: LanguageModel,
    rewrites: Sequence[Rewrite],
    layer: int,
    settings: ValueSettings,
    *,
    site: Site,
    keep_keys: bool = True,
    store: ValueStore | None = None,
    known: Mapping[str, KnownValue] | None = None,
    fingerprint: str | None = None,
) -> Values:
    """Find every edit's shift at one layer.

    The edits are worked through in chunks that depend on nothing but their list, so that an interrupted run with a
    store, started again, gives bit for bit what it would have given.

    Args:
        lm: the model, which is not changed.
        rewrites: the edits, tokenised under the same contexts.
        layer: where the shift is added.
        settings: of the optimisation.
        site: what v0 is, and so what the clamp is relative to: the MLP's output (ROME) or the block's (MEMIT). Where a
            norm follows the MLP, the shift is always at W's output, and v0 with it.
        keep_keys: return ``keys`` and ``outputs``, which take n·c·(m + d) numbers.
        store: where finished chunks are written; one found there is not computed again.
        known: values found before, by ``edit_id``; these edits are not optimised again.
        fingerprint: of the weights, where already known; only a store needs it.

    Raises:
        NumericalError: a loss is not a finite number.
        StorageError: the store cannot be written.
    """
    known = known or {}
    parts: list[Values] = []
    order: list[int] = []
    # Gradients are wanted here even where the caller has switched them off.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        frozen(lm.model),
        task(f"Values of {len(rewrites)} edit(s)", total=len(rewrites)) as bar,
    ):
        if store is not None and fingerprint is None:
            fingerprint = lm.fingerprint()
        for places in _chunks(rewrites, [i for i, r in enumerate(rewrites) if r.edit.edit_id in known]):
            order += places
            found = [known[rewrites[i].edit.edit_id] for i in places]
            parts.append(_of_known(lm, [rewrites[i] for i in places], layer, settings, site, found, keep_keys))
            bar.advance(len(places))
        for places in _chunks(rewrites, [i for i, r in enumerate(rewrites) if r.edit.edit_id not in known]):
            order += places
            chosen = [rewrites[i] for i in places]
            key = None
            if store is not None:
                key = chunk_key(
                    chosen, weights=fingerprint, dtype=str(lm.dtype), layer=layer, site=site, keys=keep_keys,
                    **asdict(settings),
                )  # fmt: skip
                stored = store.read(key)
                if stored is not None:
                    parts.append(Values.of_tensors(stored, lm.weight(layer).device))
                    bar.advance(len(places))
                    continue
            parts.append(_Chunk(lm, chosen, layer, settings, site).optimise(bar, keep_keys))
            if store is not None and key is not None:
                store.write(key, parts[-1].tensors())
    return Values.joined(parts, order)


def _chunks(rewrites: Sequence[Rewrite], chosen: Sequence[int]) -> list[list[int]]:
    """The places of the chosen edits, cut into lists of which each makes one batch."""
    # Rows of like length share a batch; padding would be computed for nothing.
    order = sorted(chosen, key=lambda i: len(rewrites[i].prompts[0].ids) - rewrites[i].prompts[0].lookup)
    size = min(EDITS_AT_ONCE, max(1, ROWS_AT_ONCE // (len(rewrites[0].prompts) + 1)))
    return [order[at : at + size] for at in range(0, len(order), size)]


def _of_known(
    lm: LanguageModel,
    rewrites: Sequence[Rewrite],
    layer: int,
    settings: ValueSettings,
    site: Site,
    known: Sequence[KnownValue],
    keep_keys: bool,
) -> Values:
    """Values found before, with the keys that belong to them: one pass up to the layer, or none without keys."""
    weight = lm.weight(layer)
    d, m = weight.shape
    delta, start = (
        torch.stack([getattr(value, name) for value in known]).to(weight.device, torch.float32)
        for name in ("delta", "start")
    )
    keys, outputs = (torch.empty(len(known), 0, width, device=weight.device) for width in (m, d))
    if keep_keys:
        chunk = _Chunk(lm, rewrites, layer, settings, site)
        keys, outputs = chunk.keys, chunk.outputs
    return Values(delta, start, keys, outputs, [value.loss for value in known], [value.steps for value in known])


class _Chunk:
    """Some edits whose rows form one batch: for each edit its contexts' rows, then its essence row."""

    def __init__(
        self, lm: LanguageModel, rewrites: Sequence[Rewrite], layer: int, settings: ValueSettings, site: Site
    ) -> None:
        self.lm, self.rewrites, self.layer, self.settings = lm, rewrites, layer, settings
        self.block = lm.layer(layer)
        self.contexts = len(rewrites[0].prompts)
        rows = [row for rewrite in rewrites for row in (*rewrite.training_rows(), rewrite.essence)]
        self.batch = SplitBatch(lm, [row.ids for row in rows], [row.lookup for row in rows])
        self.lookup = torch.tensor([self.batch.column(i, row.lookup) for i, row in enumerate(rows)], device=lm.device)
        self._measure_start(site)
        n, d = len(rewrites), self.start.shape[-1]
        self.delta = torch.zeros(n, d, device=self.start.device, requires_grad=True)
        self.limit = settings.clamp * self.start.norm(dim=-1, keepdim=True)

    def _measure_start(self, site: Site) -> None:
        """One pass up to the edited layer: keys, outputs, v0, and the state from which every step starts."""
        block, out = self.block, self.block.out_projection
        with torch.no_grad():
            _, seen = self.batch.run(inputs=[out, block.path], outputs=[out, block.path], stop=block.path)
        rows = torch.arange(len(self.lookup), device=self.lookup.device)
        shape = self.batch.ids.shape

        def at_lookup(tensor: Tensor) -> Tensor:
            at = tensor.device
            picked = tensor.reshape(*shape, -1)[rows.to(at), self.lookup.to(at)].float()
            return picked.view(len(self.rewrites), self.contexts + 1, -1)

        self.keys, self.outputs = at_lookup(seen.inputs[out])[:, :-1], at_lookup(seen.outputs[out])[:, :-1]
        if block.additive and self.batch.restartable:
            # W's output is added to the stream as it is, so the shift can be added behind the block: one block less.
            self.entry, self.first, self.shifted = seen.outputs[block.path], self.layer + 1, None
        else:
            self.entry, self.first, self.shifted = seen.inputs[block.path], self.layer, out
        at_block = site == "block" and block.additive
        self.start = (at_lookup(seen.outputs[block.path]) if at_block else self.outputs)[:, 0]

    def optimise(self, bar: Task, keep_keys: bool) -> Values:
        settings, n = self.settings, len(self.rewrites)
        adam = torch.optim.Adam([self.delta], lr=settings.learning_rate)
        losses, steps = torch.full((n,), torch.inf), torch.zeros(n, dtype=torch.long)
        view = _View(self, list(range(n)))
        reference: Tensor | None = None  # log p_0 at the essence rows, [n, vocabulary]
        running = torch.ones(n, dtype=torch.bool)
        for step in range(settings.steps):
            nll, essence = view.pass_with(self.delta)
            if reference is None:
                reference = essence.detach()
            held = reference[view.edits]
            kl = (essence.exp() * (essence - held)).sum(-1)
            delta = self.delta[view.edits]
            decay = settings.weight_decay * delta.norm(dim=-1) / self.start[view.edits].norm(dim=-1) ** 2
            loss = nll + settings.kl_weight * kl + decay
            self._check(loss, view.edits)
            now = torch.tensor(view.edits)
            here = running[now]
            losses[now[here]] = loss.detach().float().cpu()[here]
            steps[now[here]] += 1
            finished = running.clone()
            running[now[losses[now] < settings.stop_loss]] = False
            bar.advance(int((finished & ~running).sum()))
            if step == settings.steps - 1 or not running.any():
                break
            self._update(adam, loss, view, running)
            live = [i for i in view.edits if running[i]]
            if len(live) < REPACK_BELOW * len(view.edits):
                view = _View(self, live)
        bar.advance(int(running.sum()))
        kept = slice(None) if keep_keys else slice(0, 0)
        # Cloned: a slice would hold on to every context's keys.
        keys, outputs = self.keys[:, kept].clone(), self.outputs[:, kept].clone()
        return Values(self.delta.detach(), self.start.clone(), keys, outputs, losses.tolist(), steps.tolist())

    def _update(self, adam: torch.optim.Adam, loss: Tensor, view: _View, running: Tensor) -> None:
        """One Adam step for the edits still running, each held within its clamp; the others stay as they are."""
        before = self.delta.detach().clone()
        adam.zero_grad()
        # Summed, not averaged: each edit's gradient is then that of its own loss, whatever shares its batch.
        loss.sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            norm = self.delta.norm(dim=-1, keepdim=True)
            self.delta.mul_(torch.where(norm > self.limit, self.limit / norm, 1.0))
            stays = ~running.to(self.delta.device)
            self.delta[stays] = before[stays]

    def _check(self, loss: Tensor, edits: Sequence[int]) -> None:
        bad = [i for i, fine in zip(edits, torch.isfinite(loss).tolist(), strict=True) if not fine]
        if bad:
            edit = self.rewrites[bad[0]].edit
            raise NumericalError(
                f"The optimisation for {edit.subject!r} -> {edit.target_new!r} at layer {self.layer} gave a loss that "
                "is not a number: load the model in float32, or lower the learning rate."
            )


class _View:
    """The part of a chunk's batch that still runs: which edits, their rows, and where their targets are read."""

    def __init__(self, chunk: _Chunk, edits: list[int]) -> None:
        self.chunk, self.edits = chunk, edits
        per = chunk.contexts + 1
        rows = [e * per + r for e in edits for r in range(per)]
        whole = len(edits) == len(chunk.rewrites)
        self.batch = chunk.batch if whole else chunk.batch.select(rows)
        index = torch.tensor(rows, device=chunk.lookup.device)
        self.lookup = chunk.lookup[index]
        self.entry = chunk.entry if whole else chunk.entry[index.to(chunk.entry.device)]
        spots: list[tuple[int, int, int, int]] = []  # (row, column, wanted token, edit) of every target token
        for e, edit in enumerate(edits):
            rewrite = chunk.rewrites[edit]
            for c, prompt in enumerate(rewrite.prompts):
                row = e * per + c
                last = int(self.lookup[row]) + len(prompt.ids) - 1 - prompt.lookup
                spots += [(row, last + j, token, e) for j, token in enumerate(rewrite.target)]
        essence_rows = [e * per + per - 1 for e in range(len(edits))]
        self.rows = torch.tensor([s[0] for s in spots] + essence_rows)
        self.columns = torch.cat([torch.tensor([s[1] for s in spots]), self.lookup[essence_rows].cpu()])
        self.wanted = torch.tensor([s[2] for s in spots])
        self.owner = torch.tensor([s[3] for s in spots])
        self.share = torch.tensor([1.0 / (chunk.contexts * len(chunk.rewrites[edits[s[3]]].target)) for s in spots])

    def pass_with(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean NLL of each edit [edits], and log-probabilities at its essence row [edits, vocabulary], under δ."""
        chunk = self.chunk
        values = delta[self.edits].repeat_interleave(chunk.contexts + 1, dim=0)
        shift = None if chunk.shifted is None else (chunk.shifted, self.lookup, values)
        entry = self.entry if chunk.shifted is not None else add_at(self.entry, self.lookup, values)
        if chunk.first == chunk.lm.num_layers:
            raise NumericalError(f"Layer {chunk.layer} is the last one, so nothing reads the edit: choose a lower one.")
        logits, _ = self.batch.run(start=chunk.first, hidden=entry, at=(self.rows, self.columns), shift=shift)
        if logits is None:
            raise RuntimeError("a pass that was not stopped gives logits")
        log_probabilities = torch.log_softmax(logits.float(), dim=-1)
        n, device = len(self.wanted), log_probabilities.device
        picked = log_probabilities[:n].gather(1, self.wanted.to(device)[:, None])[:, 0]
        nll = torch.zeros(len(self.edits), device=device).index_add(
            0, self.owner.to(device), -picked * self.share.to(device)
        )
        return nll.to(delta.device), log_probabilities[n:].to(delta.device)
