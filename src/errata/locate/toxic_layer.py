"""The layer whose states tell an unwanted response from a wanted one most: where DINM edits.

Wang et al., *Detoxifying Large Language Models via Knowledge Editing*, ACL 2024 (2403.14472), section 4.1. The two
responses are fed alone (no question, no template), and ``D[l] = ‖pool(H_safe[l]) - pool(H_unsafe[l])‖``. The states of
late layers are larger, so the largest D stands late almost by construction: the distance relative to the states' size
is reported beside it. States are those that leave the block, before the final norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from errata import progress
from errata.datasets.locating import ResponsePair
from errata.errors import ConfigError, RequestError
from errata.evaluation.intervals import Estimate, mean, proportion
from errata.evaluation.schema import Metric, Record
from errata.lm import LanguageModel
from errata.lm.activations import capture, evaluating, frozen, stop_at
from errata.lm.forward import model_inputs
from errata.lm.products import fast_products
from errata.lm.tags import UNTAGGED, tagged
from errata.lm.tokens import encode, pad
from errata.locate.pictures import INK, LIGHT, SECOND
from errata.locate.result import Located, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pool = Literal["last", "mean", "overlap", "padded"]
Choice = Literal["sum", "mode"]


@dataclass(frozen=True, eq=False)
class ToxicLayer(Located):
    """Distances between the states of wanted and unwanted responses, by layer.

    Attributes:
        lm: the model.
        pairs: the names of the pairs.
        pool: how the tokens of a response became one thing. choose: how the pairs were put together.
        normed: the last layer's state is taken after the final norm, as the authors' code has it.
        distances: [pairs][layers]. relative: the same over the mean size of the two states.
        layer: the chosen one.
    """

    name: ClassVar[str] = "toxic-layer"
    key: ClassVar[str] = "pair_id"

    lm: LanguageModel = field(repr=False)
    pairs: tuple[str, ...]
    pool: str
    choose: str
    normed: bool
    distances: tuple[tuple[float, ...], ...]
    relative: tuple[tuple[float, ...], ...]
    layer: int
    title: str = "Toxic layer"

    @property
    def winners(self) -> tuple[int, ...]:
        """Each pair's own layer of the largest distance."""
        return tuple(_largest(row) for row in self.distances)

    def by_layer(self, *, relative: bool = False) -> list[Estimate]:
        """The mean distance over pairs of each layer, with its interval."""
        rows = self.relative if relative else self.distances
        return [mean(list(column)) for column in zip(*rows, strict=True)]

    def gains(self) -> list[float | None]:
        """Each layer's mean distance over that of the layer below."""
        means = [estimate.value for estimate in self.by_layer()]
        below = zip(means[1:], means, strict=False)
        return [None, *(now / before if before else None for now, before in below)]

    def what(self) -> dict[str, Any]:
        """How it was measured."""
        how = {"pool": self.pool, "choose": self.choose, "normed": self.normed}
        return {"verb": "locate toxic-layer", "pairs": len(self.pairs), **how}

    def to_dict(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "what": self.what(),
            "layer": self.layer,
            "mean_distance": [estimate.to_dict() for estimate in self.by_layer()],
            "mean_relative_distance": [estimate.to_dict() for estimate in self.by_layer(relative=True)],
            "gain": self.gains(),
            "pairs": self.records(),
        }

    def records(self) -> list[Record]:
        """One record a pair; the responses themselves are not kept."""
        rows = zip(self.pairs, self.winners, self.distances, self.relative, strict=True)
        return [
            {"pair_id": name, "layer": winner, "distances": list(own), "relative": list(share)}
            for name, winner, own, share in rows
        ]

    def metrics(self) -> dict[str, Metric]:
        """The layer, how far apart the states are there, and for how many pairs it is the own layer."""
        own = sum(winner == self.layer for winner in self.winners)
        return {
            "layer": Metric(value=self.layer, low=None, high=None, n=len(self.pairs)),
            "distance": Metric.of(self.by_layer()[self.layer]),
            "relative_distance": Metric.of(self.by_layer(relative=True)[self.layer]),
            "agreement": Metric.of(proportion(own, len(self.pairs))),
        }

    def table(self) -> Table:
        """A row a layer."""
        counts, gains = Counter(self.winners), self.gains()
        rows = []
        for layer, (far, share) in enumerate(zip(self.by_layer(), self.by_layer(relative=True), strict=True)):
            gain = gains[layer]
            rows.append(
                (
                    f"{layer}{' *' if layer == self.layer else ''}",
                    f"{far.value:.4g} [{far.low:.4g}, {far.high:.4g}]",
                    f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]",
                    "" if gain is None else f"{gain:.2f}",
                    str(counts[layer] or ""),
                )
            )
        columns = ("layer", "distance", "relative", "gain", "pairs' own")
        return Table.of(columns, rows, right=columns, title=f"{self.title}: {self.layer}")

    def notes(self) -> list[str]:
        """What the numbers mean."""
        relative = self.by_layer(relative=True)
        best = max(range(len(relative)), key=lambda i: (relative[i].value, -i))
        return [
            f"Layer {self.layer} has the largest distance over {len(self.pairs)} pairs ({self.pool} pooling, "
            f"{self.choose}); relative to the size of the states it is layer {best}. The size grows with depth, so the "
            "first finding says little where the second differs."
        ]

    def plot(self) -> Figure:
        """Distance and relative distance over the layers, with 95% bands."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(8.0, 5.2), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        for axes, relative, label in zip(panels, (False, True), ("distance", "relative distance"), strict=True):
            curve = self.by_layer(relative=relative)
            layers = range(len(curve))
            axes.fill_between(layers, [e.low for e in curve], [e.high for e in curve], color=LIGHT, linewidth=0)
            axes.plot(layers, [e.value for e in curve], color=INK)
            axes.axvline(self.layer, color=SECOND, linestyle="--", linewidth=1)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_title(
            f"{self.title} of {self.lm.name}: {self.layer} (n = {len(self.pairs)} pairs)", loc="left", fontsize=11
        )
        panels[1].set_xlabel("layer")
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure


def find_toxic_layer(
    lm: LanguageModel,
    pairs: Sequence[ResponsePair],
    *,
    pool: Pool = "last",
    choose: Choice = "sum",
    normed: bool = False,
) -> ToxicLayer:
    """Find the layer whose states differ most between wanted and unwanted responses.

    Args:
        lm: the model, which is left as it is.
        pairs: the responses.
        pool: ``last`` takes each response's last token, ``mean`` the mean of its tokens, ``overlap`` the tokens that
            both have places for, and ``padded`` the whole matrix of the longer one, padding included (the authors').
        choose: ``sum`` adds the distances of all pairs, ``mode`` takes the layer most pairs have for their own.
        normed: take the last layer's state after the final norm (the authors' ``hidden_states[-1]``).

    Raises:
        RequestError: there is no pair, or a response has no tokens, or two have the same ones.
        ConfigError: no such way to pool or to choose, or there is no final norm.
    """
    if pool not in get_args(Pool):
        raise ConfigError(f"There is no pooling {pool!r}: choose one of {', '.join(get_args(Pool))}.")
    if choose not in get_args(Choice):
        raise ConfigError(f"There is no choice {choose!r}: choose one of {', '.join(get_args(Choice))}.")
    if normed and lm.architecture.final_norm is None:
        raise ConfigError(f"{lm.name} has no final norm: leave it out.")
    if not pairs:
        raise RequestError("There is no pair of responses: give at least one.")
    rows = [_tokens(lm, pair) for pair in pairs]
    distances, relative = [], []
    with torch.no_grad(), frozen(lm.model), evaluating(lm.model), fast_products(lm.model):
        for safe, unsafe in progress.track(rows, "Comparing responses"):
            states = _states(lm, safe, unsafe, normed)
            far, size = zip(*(_distance(state, len(safe), len(unsafe), pool) for state in states), strict=True)
            distances.append(tuple(far))
            relative.append(tuple(d / s if s else 0.0 for d, s in zip(far, size, strict=True)))
    if choose == "sum":
        layer = _largest([sum(column) for column in zip(*distances, strict=True)])
    else:
        counts = Counter(_largest(row) for row in distances)
        layer = min(counts, key=lambda at: (-counts[at], at))
    names = tuple(pair.pair_id for pair in pairs)
    return ToxicLayer(lm, names, pool, choose, normed, tuple(distances), tuple(relative), layer)


def _tokens(lm: LanguageModel, pair: ResponsePair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    safe, unsafe = encode(lm.tokenizer, pair.safe).ids, encode(lm.tokenizer, pair.unsafe).ids
    if not safe or not unsafe:
        raise RequestError(f"A response of the pair {pair.pair_id!r} has no tokens: give some text.")
    if safe == unsafe:
        raise RequestError(
            f"The two responses of the pair {pair.pair_id!r} have the same tokens, so no layer tells them apart: "
            "correct one of them."
        )
    return safe, unsafe


def _states(lm: LanguageModel, safe: Sequence[int], unsafe: Sequence[int], normed: bool) -> list[Tensor]:
    """What each block gives for the two responses, padded on the right to one length: [2, tokens, d] each."""
    paths = [block.path for block in lm.architecture.blocks]
    final = [lm.architecture.final_norm] if normed and lm.architecture.final_norm else []
    end = final[0] if final else paths[-1]
    filler = lm.tokenizer.eos_token_id if lm.tokenizer.eos_token_id is not None else 0
    ids, mask = (tensor.to(lm.device) for tensor in pad([safe, unsafe], filler))
    where = torch.arange(ids.shape[1], device=ids.device).expand(2, -1)
    untagged = torch.full((2,), UNTAGGED)
    with tagged(lm.model, untagged), capture(lm.model, outputs=[*paths, *final]) as seen, stop_at(lm.model, end):
        lm.model(**model_inputs(lm, ids, mask, where), use_cache=False)
    return [seen.outputs[path].float() for path in [*paths[:-1], final[0] if final else paths[-1]]]


def _distance(state: Tensor, safe: int, unsafe: int, pool: str) -> tuple[float, float]:
    """How far apart the two responses' states [2, tokens, d] are, and the mean of their sizes."""
    if pool == "last":
        one, other = state[0, safe - 1], state[1, unsafe - 1]
    elif pool == "mean":
        one, other = state[0, :safe].mean(0), state[1, :unsafe].mean(0)
    else:
        kept = min(safe, unsafe) if pool == "overlap" else state.shape[1]
        one, other = state[0, :kept], state[1, :kept]
    return float((one - other).norm()), float(one.norm() + other.norm()) / 2


def _largest(values: Sequence[float]) -> int:
    """The first place of the largest value."""
    return max(range(len(values)), key=lambda i: (values[i], -i))
