"""``errata conflicts``: edits that stand in each other's way, before anything is edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output, console, table

if TYPE_CHECKING:
    from errata.methods import Conflict

SHOWN, WARNED = 50, 5


def run(
    file: Annotated[Path, typer.Option("--file", "-f", help="Edits in .jsonl, .json or .csv.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Compare the keys too, in this model: the embedded one, a hub id, a folder."
        ),
    ] = None,
    patch: Annotated[
        list[str] | None,
        typer.Option("--patch", "-p", help="Folder or hub id of a patch whose edits were made before; repeatable."),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option("--layer", help="Where keys are compared, from 0; repeatable; by default the layers edited."),
    ] = None,
    parallel: Annotated[
        float, typer.Option("--parallel", help="Keys whose cosine is at least this count as parallel.")
    ] = 0.98,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List edits of a file that contradict one another, or that a model can hardly tell apart.

    Exits with 1 where there are any; what is a remark only (a repeated edit, a chain of two) does not count.
    """
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        from errata.datasets import read_edits
        from errata.methods import find_conflicts
        from errata.patch import Patch

        edits = read_edits(file)
        before = [Patch.from_pretrained(place) for place in patch or ()]
        find_conflicts([], parallel=parallel)  # a wrong bound is refused before a model is loaded for it
        lm = None if model is None else options.load_model(say, model, device, dtype)
        found = find_conflicts(edits, lm, against=before, layer=layer or None, parallel=parallel)
    document = {
        "edits": len(edits),
        "keys_compared": lm is not None,
        "parallel": parallel,
        "conflicts": [conflict.to_dict() for conflict in found],
    }
    say.report(document, counted(found), *_body(found, len(edits), lm is not None))
    if any(not conflict.note for conflict in found):
        raise typer.Exit(1)


def warn(say: Output, conflicts: Sequence[Conflict]) -> None:
    """A few lines on standard error before edits are made that stand in each other's way; remarks are left out."""
    grave = [conflict for conflict in conflicts if not conflict.note]
    if not grave or say.as_json or say.quiet:
        return
    screen = console(stderr=True)
    screen.print(_table(grave[:WARNED], title=f"Edits in each other's way: {counted(grave)}"))
    if len(grave) > WARNED:
        screen.print(Text(f"`errata conflicts` lists all {len(grave)}.", style="dim"), soft_wrap=True)


def counted(conflicts: Sequence[Conflict]) -> str:
    """``2 same question, 1 chain``, or ``no conflict``."""
    kinds = Counter(conflict.kind for conflict in conflicts)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no conflict"


def _body(found: Sequence[Conflict], count: int, with_keys: bool) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if found:
        parts.append(_table(found[:SHOWN]))
    if len(found) > SHOWN:
        parts.append(Text(f"and {len(found) - SHOWN} more (--json lists all)", style="dim"))
    parts.append(Text(f"{count} edit{'s' if count > 1 else ''}: {counted(found)}."))
    if not with_keys:
        parts.append(Text("Only texts were compared; --model compares the keys too.", style="dim"))
    return parts


def _table(conflicts: Sequence[Conflict], *, title: str | None = None) -> Table:
    with_keys = any(conflict.cosine is not None for conflict in conflicts)
    made = table("kind", "edits", *(["cosine"] if with_keys else []), "what it means", title=title, right=("cosine",))
    for conflict in conflicts:
        first, second = (f"{edit.text} → {edit.target_new}" for edit in (conflict.first, conflict.second))
        number = "" if conflict.cosine is None else f"{conflict.cosine:.3f}\nlayer {conflict.layer}"
        made.add_row(
            Text(conflict.kind, style="dim" if conflict.note else "bold red"),
            Text(f"{first}\n{second}" + (" (made before)" if conflict.carried else "")),
            *([number] if with_keys else []),
            Text(conflict.sentence),
            end_section=True,
        )
    return made
