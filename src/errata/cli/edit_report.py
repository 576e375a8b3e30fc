"""What ``errata edit`` says at the end: a JSON document, or tables and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from errata.cli.output import megabytes, percent, table

if TYPE_CHECKING:
    from errata.bench.preview import Preview
    from errata.methods import Conflict
    from errata.patch import Patch

MOVED_SHOWN = 5


def document(
    patch: Patch,
    preview: Preview,
    conflicts: Sequence[Conflict],
    *,
    folder: Path,
    html: Path | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The machine-readable result."""
    return {
        "patch": str(folder),
        "html": None if html is None else str(html),
        "method": patch.card.method,
        "config": patch.card.config,
        "num_bytes": patch.num_bytes,
        "conflicts": [conflict.to_dict() for conflict in conflicts],
        **preview.to_dict(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def body(
    patch: Patch, preview: Preview, *, model: str, folder: Path, html: Path | None, seconds: dict[str, float]
) -> list[RenderableType]:
    """What a person reads."""
    parts: list[RenderableType] = [_answers(preview)]
    if not preview.took:
        parts.append(_missed(patch, preview))
    parts += [_moved(preview), _kept(patch, folder, html, seconds), "", *_next(model, folder)]
    return parts


def _answers(preview: Preview) -> RenderableType:
    made = table("prompt", "before", "after", "P(target)", "ok", right=("P(target)",))
    for row in preview.rows:
        chance = f"{percent(row.p_before)} → {percent(row.p_after)}"
        mark = Text("yes", style="green") if row.took else Text("no", style="bold red")
        made.add_row(row.prompt, Text(row.before), Text(row.after, style="bold"), chance, mark)
    return made


def _missed(patch: Patch, preview: Preview) -> Text:
    missed = [row for row in preview.rows if not row.took]
    which = f"{len(missed)} of {len(preview.rows)} edits" if len(preview.rows) > 1 else "The edit"
    named = ", ".join(repr(row.target) for row in missed[:3]) + (", ..." if len(missed) > 3 else "")
    layer = patch.card.config.get("layer", patch.card.config.get("layers"))
    steps = patch.card.config.get("steps")
    remedies = [f"another layer (it was {layer}: --layer N)" if layer is not None else ""]
    remedies += [f"more steps (--set steps={2 * steps})" if isinstance(steps, int) else "", "another --method"]
    return Text(
        f"{which} did not take: the answer does not begin with {named}. Try {', '.join(r for r in remedies if r)}.",
        style="bold red",
    )


def _moved(preview: Preview) -> Text:
    before, after = preview.perplexity_before, preview.perplexity_after
    change = f"{after / before - 1:+.2%}" if before else "not known"
    text = Text(
        f"What else moved: {preview.unchanged} of {len(preview.controls)} answers about other things are unchanged; "
        f"perplexity of plain text {before:.2f} → {after:.2f} ({change})."
    )
    changed = [control for control in preview.controls if not control.same]
    for control in changed[:MOVED_SHOWN]:
        text.append(f"\n  {control.prompt} … {control.before!r} → {control.after!r}")
    if len(changed) > MOVED_SHOWN:
        text.append(f"\n  and {len(changed) - MOVED_SHOWN} more (--json lists all)")
    return text


def _kept(patch: Patch, folder: Path, html: Path | None, seconds: dict[str, float]) -> Text:
    text = Text(f"Patch: {folder}  ({patch.card.method}, {megabytes(patch.num_bytes)}, {seconds['edit']:.1f} s)")
    if html is not None:
        text.append(f"\nPage:  {html}")
    return text


def _next(model: str, folder: Path) -> list[RenderableType]:
    place, name = shlex.quote(str(folder)), shlex.quote(model)
    return [
        Text("A checkpoint that any tool loads, and the way back from it:", style="dim"),
        f"  errata apply --model {name} --patch {place} --out patched-model",
        "  errata revert --model patched-model --out unpatched-model",
        Text("In Python:", style="dim"),
        f"  patch = errata.Patch.from_pretrained({str(folder)!r}); patch.apply(lm); patch.revert(lm)",
    ]
