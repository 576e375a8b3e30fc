"""``errata export``: a patch in a form that other tools read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output
from errata.cli.places import check_new_folder
from errata.errors import ConfigError


class Format(StrEnum):
    """What to write."""

    LORA = "lora"
    MERGED = "merged"


def run(
    patch: Annotated[str, typer.Argument(help="Folder or hub id of a patch.")],
    model: options.Model,
    out: options.OutFolder,
    form: Annotated[Format, typer.Option("--format", help="A PEFT adapter, or the whole patched model.")] = Format.LORA,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Cut dense changes to this rank (lora only).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also for a model that the patch was not made for.")] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a patch as a PEFT LoRA adapter, or merged into its model."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        if rank is not None and form is Format.MERGED:
            raise ConfigError("--rank cuts an adapter's changes, and a merged model has none: leave it out.")
        check_new_folder(out)

        from errata.patch import Patch

        read = Patch.from_pretrained(patch)
        lm = options.load_model(say, model, device, dtype)
        errors: dict[str, float] = {}
        with say.step(f"Writing {out}"):
            if form is Format.LORA:
                errors = read.to_lora(out, lm, svd_rank=rank, force=force)
            else:
                read.merge(out, lm, force=force)
    cut = {name: error for name, error in errors.items() if error > 0}
    lines = [Text(f"{'LoRA adapter' if form is Format.LORA else 'Patched model'}: {out}")]
    lines += [Text(f"  {name}: {error:.1%} of the change was cut away", style="yellow") for name, error in cut.items()]
    say.report({"out": str(out), "format": form.value, "patch": patch, "cut": errors}, str(out), *lines)
