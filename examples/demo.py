"""Edit five facts in a small model, look at the answers before and after, and keep the patch.

    python examples/demo.py [folder] [picture.svg]

The facts are true ones turned false on purpose: that the model knew them shows that it was the edit that changed them.
The folder (by default ``demo-output``) gets the patch and a page that opens in any browser; the picture, where one is
asked for, what the terminal shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import errata
from errata.bench.preview import Preview, before_after
from errata.web.page import write_before_after

MODEL = "smollm2-135m"


def main(folder: Path, picture: Path | None = None) -> int:
    """Run the demo; the exit code is 1 where an edit did not take."""
    screen = Console(record=picture is not None, width=118 if picture is not None else None)
    screen.print(f"Loading {MODEL} ...")
    lm = errata.load(MODEL)
    edits = errata.read_edits(Path(__file__).with_name("demo_edits.jsonl"))

    screen.print(f"Editing {len(edits)} facts ...")
    patch = errata.edit(lm, edits)  # MEMIT, the default for several edits; the model itself is unchanged so far
    patch.save_pretrained(folder / "patch", replace=True)

    screen.print("Asking before and after ...")
    preview = before_after(lm, patch)
    page = folder / "before_after.html"
    write_before_after(
        page,
        preview=preview,
        patch=patch,
        model_name=MODEL,
        quantised_origin=lm.quantised_origin,
        folder=folder / "patch",
    )
    show(screen, preview)
    screen.print(f"The patch: {folder / 'patch'} ({patch.num_bytes / 1e3:.0f} kB)\nThe page:  {page}", soft_wrap=True)

    # The patch comes off bit for bit.
    before = lm.fingerprint()
    patch.apply(lm)
    patch.revert(lm)
    screen.print(f"Applied and reverted, every bit as before: {lm.fingerprint() == before}")
    if picture is not None:
        screen.save_svg(str(picture), title="make demo")
    return 0 if preview.took else 1


def show(screen: Console, preview: Preview) -> None:
    """The answers as a table, and what else moved."""
    table = Table("prompt", "before", "after", "P(target)", "took")
    for row in preview.rows:
        chances = f"{row.p_before:.1%} → {row.p_after:.1%}"
        table.add_row(row.prompt, row.before, row.after, chances, "yes" if row.took else "no")
    screen.print(table)
    screen.print(
        f"What else moved: {preview.unchanged} of {len(preview.controls)} answers about other things are unchanged; "
        f"perplexity of plain text {preview.perplexity_before:.2f} → {preview.perplexity_after:.2f}."
    )


if __name__ == "__main__":
    places = [Path(argument) for argument in sys.argv[1:3]] or [Path("demo-output")]
    sys.exit(main(*places))
