"""The flags that the tracing verbs share, and the step from their text to the library's options."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

Kinds = Annotated[
    str,
    typer.Option(
        "--kinds", help="What is put back: any of state,mlp,attention,severed-mlp,severed-attention, with commas."
    ),
]
Window = Annotated[
    int | None, typer.Option("--window", help="Layers of an MLP or attention window; by default a fifth of the depth.")
]
Before = Annotated[
    int | None, typer.Option("--before", help="How many of them stand below the window's own layer; by default half.")
]
Noise = Annotated[
    str, typer.Option("--noise", help="Its level: 3s for three standard deviations of the embeddings, or a number.")
]
Samples = Annotated[int, typer.Option("--samples", help="Corrupted runs a prompt.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the noise.")]


class Corrupt(StrEnum):
    """What happens to the subject."""

    GAUSSIAN = "gaussian"
    UNIFORM = "uniform"
    COVARIANCE = "covariance"
    REPLACEMENT = "replacement"


Corruption = Annotated[
    Corrupt,
    typer.Option("--corruption", help="Noise on the subject's embeddings, or another subject of as many tokens."),
]


def trace_options(
    *,
    kinds: str,
    window: int | None,
    before: int | None,
    corruption: Corrupt,
    noise: str,
    samples: int,
    seed: int,
    measure: Any,
) -> dict[str, Any]:
    """The arguments of ``errata.locate.trace``, checked before a model is loaded.

    Raises:
        ConfigError: one is out of range.
    """
    from errata.locate import Corruption, TraceOptions
    from errata.locate.tracing import parse_kinds

    chosen: dict[str, Any] = {
        "kinds": parse_kinds(kinds.split(",")),
        "window": window,
        "before": before,
        "corruption": Corruption.parse(corruption.value, noise),
        "samples": samples,
        "seed": seed,
        "measure": measure.value,
    }
    TraceOptions(**chosen)
    return chosen
