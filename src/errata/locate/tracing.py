"""How a trace is made: its options, and the grid of restorations for one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from errata.errors import ArchitectureError, ConfigError
from errata.lm import LanguageModel
from errata.locate.corruption import Corruption
from errata.locate.patching import Cell, Patching

Grid = NDArray[np.float64]
Measure = Literal["probability", "probability-difference", "logit-difference"]
MEASURES: tuple[str, ...] = get_args(Measure)
# Ten layers of GPT-2 XL's 48, as published; a fifth of the depth elsewhere.
WINDOW, WINDOW_OF_LAYERS = 10, 48


class Kind(StrEnum):
    """What is put back at a token.

    A window puts back the outputs of one sub-module in several neighbouring layers. A severed state is the hidden state
    put back while, in all layers above, one sub-module's outputs at that token stay as in the corrupted run.
    """

    STATE = "state"
    MLP = "mlp"
    ATTENTION = "attention"
    SEVERED_MLP = "severed-mlp"
    SEVERED_ATTENTION = "severed-attention"

    @property
    def severed(self) -> bool:
        """Whether it is measured at the subject's last token only."""
        return self in (Kind.SEVERED_MLP, Kind.SEVERED_ATTENTION)


GRIDS = (Kind.STATE, Kind.MLP, Kind.ATTENTION)


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """The options of a trace; the defaults are the published ones (Meng et al. 2022), scaled to the model's depth.

    Attributes:
        kinds: what is put back, see :class:`Kind`.
        window: layers of an MLP or attention window; by default 10 of 48, rounded.
        before: how many of them stand below the layer that names the window; by default half of them.
        corruption: what is done to the subject.
        samples: corrupted runs a fact.
        seed: of the noise.
        measure: "probability" of the answer (the product over its tokens), or the difference of that and of the other
            continuation's ("probability-difference"), or of their log-probabilities ("logit-difference": for answers of
            one token the difference of logits).

    Raises:
        ConfigError: an unknown kind or measure, a window that cannot be, no sample.
    """

    kinds: tuple[Kind, ...] = GRIDS
    window: int | None = None
    before: int | None = None
    corruption: Corruption = field(default_factory=Corruption)
    samples: int = 10
    seed: int = 1
    measure: Measure = "probability"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", parse_kinds(self.kinds))
        if self.measure not in MEASURES:
            raise ConfigError(f"There is no measure {self.measure!r}: choose one of {', '.join(MEASURES)}.")
        if self.samples < 1:
            raise ConfigError(f"{self.samples} corrupted runs measure nothing: give at least 1; 10 are usual.")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"A window of {self.window} layers restores nothing: give at least 1.")
        if self.before is not None and not 0 <= self.before < (self.window or self.before + 1):
            raise ConfigError(
                f"A window cannot begin {self.before} layers below its own layer: give 0 or more, and fewer than the "
                "window has."
            )

    def layers(self, layer: int, depth: int) -> range:
        """The layers of the window that a layer names, cut off at both ends of the model."""
        window = self.width(depth)
        before = window // 2 if self.before is None else self.before
        return range(max(0, layer - before), min(depth, layer - before + window))

    def width(self, depth: int) -> int:
        """Layers of a window in a model of so many layers."""
        return self.window or max(1, round(WINDOW * depth / WINDOW_OF_LAYERS))


def parse_kinds(kinds: Sequence[str]) -> tuple[Kind, ...]:
    """Kinds by their names, without repeats.

    Raises:
        ConfigError: there is none, or one that does not exist.
    """
    names = [kind.strip() for kind in kinds]
    unknown = [name for name in names if name not in list(Kind)]
    if unknown or not names:
        raise ConfigError(f"There is no kind {(unknown or [''])[0]!r} to restore: choose from {', '.join(Kind)}.")
    return tuple(dict.fromkeys(Kind(name) for name in names))


def modules(lm: LanguageModel, kind: Kind) -> list[str]:
    """The modules whose outputs a kind restores or severs, one a layer: the last matrices of MLP or attention.

    What follows them before the residual stream (a norm, in Gemma 2) works token by token, so restoring their output
    restores what is added.

    Raises:
        ArchitectureError: the model's MLPs have no last matrix.
    """
    blocks = lm.architecture.blocks
    if kind in (Kind.ATTENTION, Kind.SEVERED_ATTENTION):
        return [block.attention_output for block in blocks]
    if kind is Kind.STATE:
        return []
    for index, block in enumerate(blocks):
        if not block.out_projection:
            raise ArchitectureError(
                f"The MLP of layer {index} of {lm.name} cannot be restored, for it is a mixture of experts: "
                "leave out the kinds mlp and severed-mlp."
            )
    return [block.out_projection for block in blocks]


def cells(patching: Patching, kind: Kind, token: int, options: TraceOptions) -> list[Cell]:
    """The restorations of one kind at one token, one a layer."""
    lm = patching.lm
    depth, paths = lm.num_layers, modules(lm, kind)
    if kind in (Kind.MLP, Kind.ATTENTION):
        windows = [options.layers(layer, depth) for layer in range(depth)]
        clean = [patching.clean_output(path, token) for path in paths]
        return [Cell(window.start, None, {paths[i]: clean[i] for i in window}) for window in windows]
    held = [patching.corrupted_output(path, token) for path in paths]
    return [
        Cell(
            layer + 1,
            patching.clean_state(layer + 1, token)[0],
            dict(list(zip(paths, held, strict=True))[layer + 1 :]),
        )
        for layer in range(depth)
    ]


def grid(
    patchings: Sequence[Patching], tokens: int, subject: tuple[int, int], kind: Kind, options: TraceOptions
) -> Grid:
    """The measure [tokens, layers] with one kind of restoration at each token and layer, averaged over samples.

    Tokens before the subject are the same in all runs, so restoring them gives the corrupted runs' measure. Of a
    severed kind only the subject's last token is filled, the others are NaN.
    """
    depth = patchings[0].lm.num_layers
    result = np.full((tokens, depth), np.nan)
    wanted = [subject[1] - 1] if kind.severed else list(range(subject[0], tokens))
    if not kind.severed:
        result[: subject[0]] = measured([p.corrupted for p in patchings], options.measure)
    for token in wanted:
        logs = [p.restored(token, cells(p, kind, token, options)) for p in patchings]
        result[token] = measured(logs, options.measure)
    return result


def measured(logs: Sequence[Tensor], measure: Measure) -> Grid:
    """The measure from log-probabilities [.., samples, tokens, continuations] of all passes: [..], over samples."""
    totals = [part.double()[..., k].sum(-1) for part in logs for k in range(part.shape[-1])]
    if measure == "probability":
        value = totals[0].exp()
    elif measure == "probability-difference":
        value = totals[0].exp() - totals[1].exp()
    else:
        value = totals[0] - totals[1]
    found: Grid = value.mean(-1).cpu().numpy()
    return found
