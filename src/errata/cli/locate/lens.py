"""``errata locate lens``: what the model would say if it stopped after each layer."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import options
from errata.cli.locate import shared
from errata.cli.output import Output
from errata.cli.places import check_new_folder
from errata.errors import ConfigError


def run(
    model: options.Model,
    out: options.OutFolder,
    prompt: Annotated[str, typer.Option("--prompt", help="The text.")],
    answer: shared.Answer = None,
    top: Annotated[int, typer.Option("--top", help="How many of the likeliest tokens are kept of each cell.")] = 5,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read each layer's states of a text as predictions, through the model's own final norm and head (logit lens)."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        check_new_folder(out)
        if not prompt.strip():
            raise ConfigError("The --prompt is empty: give it some text.")
        lm = options.load_model(say, model, device, dtype)

        from errata.evaluation.schema import CostMeter
        from errata.locate import logit_lens

        with CostMeter() as meter:
            found = logit_lens(lm, prompt, answer=answer, top=top)
    shared.keep_and_show(say, found, lm, meter.cost(), out)
