"""``errata revert``: from a merged checkpoint back to the unpatched one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output
from errata.cli.places import check_new_folder


def run(
    model: Annotated[
        Path, typer.Option("--model", "-m", help="A folder that `errata apply` wrote; it stays as it is.")
    ],
    out: options.OutFolder,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Rebuild the unpatched checkpoint from a patched one, bit for bit."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        check_new_folder(out)

        from errata.patch import restore_merged

        with say.step(f"Writing {out}"):
            restore_merged(model, out)
    say.report({"out": str(out), "patched": str(model)}, str(out), Text(f"The unpatched model, bit for bit: {out}"))
