"""``errata locate``: the verbs that look for something in a model, one module each."""

from __future__ import annotations

from types import ModuleType

import typer

from errata.cli.locate import bias, trace

VERBS: tuple[ModuleType, ...] = (trace, bias)

app = typer.Typer(
    name="locate",
    help="Find where in a model a fact, a behaviour or a bias lives: as a table and as a picture.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
for verb in VERBS:
    app.command(verb.__name__.rpartition(".")[2].replace("_", "-"))(verb.run)
