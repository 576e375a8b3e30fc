"""``errata apply``: patches into the weights of a checkpoint that any tool loads."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output
from errata.cli.places import check_new_folder


def run(
    model: options.Model,
    patch: Annotated[
        list[str], typer.Option("--patch", "-p", help="Folder or hub id of a patch; repeatable, applied in order.")
    ],
    out: options.OutFolder,
    force: Annotated[bool, typer.Option("--force", help="Also for a model that the patch was not made for.")] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Merge one or more patches into a model and save it as an ordinary checkpoint, from which `revert` leads back."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        check_new_folder(out)

        from errata.patch import Patch, export_merged

        patches = [Patch.from_pretrained(place) for place in patch]
        lm = options.load_model(say, model, device, dtype)
        with say.step(f"Writing {out}"):
            export_merged(patches, lm, out, force=force)
    document = {
        "out": str(out),
        "base": lm.name,
        "patches": [{"patch": p, **q.describe()} for p, q in zip(patch, patches, strict=True)],
    }
    say.report(
        document,
        str(out),
        Text(f"{lm.name} with {len(patches)} patch{'es' if len(patches) > 1 else ''} in its weights: {out}"),
        Text(f"Back to the unpatched weights, bit for bit: errata revert --model {out} --out DIR", style="dim"),
    )
