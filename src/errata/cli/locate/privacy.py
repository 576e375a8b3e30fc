"""``errata locate privacy``: the neurons that a model's memory of private values is attributed to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import options
from errata.cli.locate import changing, shared
from errata.cli.output import Output
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.locate import PrivateValue


def run(
    model: options.Model,
    out: options.OutFolder,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="JSON lines with prompt (or text) and value, and group.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One value: the text before it ...")] = None,
    value: Annotated[str | None, typer.Option("--value", help="... and what must not be said.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only so many values from the beginning.")] = None,
    of: changing.Of = changing.Measured.PROBABILITY,
    steps: changing.Steps = 20,
    rule: changing.Nodes = changing.Rule.MIDPOINT,
    tolerance: changing.Tolerance = 0.02,
    threshold: Annotated[
        float, typer.Option("--threshold", help="A text's neurons have at least this share of its largest score.")
    ] = 0.1,
    ratio: Annotated[
        float, typer.Option("--ratio", help="Kept are those that at least this share of a group's texts have.")
    ] = 0.5,
    adjust: Annotated[
        bool, typer.Option("--adjust", help="Move the ratio until groups have 2 to 10 neurons on average.")
    ] = False,
    most: Annotated[int, typer.Option("--most", help="At most so many neurons.")] = 50,
    layer: changing.Layers = None,
    effects: changing.Effects = False,
    patch: changing.PatchFolder = None,
    factor: changing.Factor = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the neurons that many private values share (privacy neurons).

    What is written names the values by their ids; neither prompts nor values are kept. A patch multiplies the neurons
    by --factor (0 by default), everywhere.
    """
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        from errata.evaluation.schema import CostMeter
        from errata.locate import PrivacyOptions, find_privacy_neurons
        from errata.locate.integral import nodes

        chosen = PrivacyOptions(
            of=of.value,
            steps=steps,
            rule=rule.value,
            tolerance=tolerance or None,
            threshold=threshold,
            ratio=ratio,
            adjust=adjust,
            most=most,
            layers=tuple(layer) if layer else None,
        )
        nodes(chosen.rule, chosen.steps)
        changing.check_folders(out, patch)
        changing.checked_factor(factor, patch)
        values = _values(file, prompt, value, limit)
        lm = options.load_model(say, model, device, dtype)
        with CostMeter() as meter:
            found = find_privacy_neurons(lm, values, chosen)
            if effects:
                found = found.with_effects()
        made = None if patch is None else found.erase(0.0 if factor is None else factor)
    shared.keep_and_show(say, found, lm, meter.cost(), out, patch=made, patch_folder=patch)


def _values(file: Path | None, prompt: str | None, value: str | None, limit: int | None) -> list[PrivateValue]:
    from errata.datasets.locating import PrivateValue, read_private_values

    if file is not None:
        if prompt is not None or value is not None:
            raise ConfigError("Give values by --file, or one by --prompt and --value, but not both.")
        return read_private_values(file, limit=limit)
    if prompt is None or value is None:
        raise ConfigError("There is no private value: give --file, or both --prompt and --value.")
    return [PrivateValue("the value", prompt, value)]
