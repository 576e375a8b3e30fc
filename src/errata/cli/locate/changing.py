"""The flags of verbs that can leave a patch of the neurons they find, and what they stand for."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from errata.cli.places import check_new_folder
from errata.errors import ConfigError


class Operation(StrEnum):
    """What is done to the neurons."""

    SUPPRESS = "suppress"
    AMPLIFY = "amplify"
    ERASE = "erase"


class Measured(StrEnum):
    """What is attributed."""

    PROBABILITY = "probability"
    LOG_PROBABILITY = "log-probability"
    LOGIT = "logit"


class Rule(StrEnum):
    """Where the gradient is taken."""

    LEFT = "left"
    RIGHT = "right"
    MIDPOINT = "midpoint"
    TRAPEZOID = "trapezoid"


Of = Annotated[Measured, typer.Option("--of", help="What is attributed.")]
Steps = Annotated[int, typer.Option("--steps", help="Gradients of each integral.")]
Nodes = Annotated[Rule, typer.Option("--rule", help="Where they are taken; left is the authors'.")]
Tolerance = Annotated[
    float,
    typer.Option(
        "--tolerance", help="Layers whose attributions miss what they add up to by more get more steps; 0 for none."
    ),
]
Layers = Annotated[list[int] | None, typer.Option("--layer", help="Look at this layer only, from 0; repeatable.")]
Effects = Annotated[
    bool, typer.Option("--effects", help="Measure what changing the neurons does, beside random ones (takes longer).")
]
PatchFolder = Annotated[
    Path | None, typer.Option("--patch", help="A new folder for a patch that changes the neurons found.")
]
Factor = Annotated[float | None, typer.Option("--factor", help="What the patch multiplies the neurons by.")]


def check_folders(out: Path, patch: Path | None) -> None:
    """Refuse folders that could not be written at the end.

    Raises:
        StorageError: one is there and not empty, or cannot be made.
        ConfigError: the two are one folder, or one lies in the other.
    """
    check_new_folder(out)
    if patch is None:
        return
    check_new_folder(patch)
    one, other = out.resolve(), patch.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ConfigError("--out and --patch name one folder, or one inside the other: give two separate folders.")


def checked_factor(factor: float | None, patch: Path | None) -> None:
    """Refuse a factor without a patch.

    Raises:
        ConfigError: there is one.
    """
    if factor is not None and patch is None:
        raise ConfigError("--factor says what a patch does, and none is asked for: add --patch DIR.")
