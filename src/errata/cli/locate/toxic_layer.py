"""``errata locate toxic-layer``: the layer whose states tell unwanted responses from wanted ones."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import options
from errata.cli.locate import shared
from errata.cli.output import Output
from errata.cli.places import check_new_folder
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.locate import ResponsePair


class Pool(StrEnum):
    """How a response's tokens become one thing."""

    LAST = "last"
    MEAN = "mean"
    OVERLAP = "overlap"
    PADDED = "padded"


class Choose(StrEnum):
    """How the pairs are put together."""

    SUM = "sum"
    MODE = "mode"


def run(
    model: options.Model,
    out: options.OutFolder,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Pairs in JSON lines: safe and unsafe responses.")
    ] = None,
    safe: Annotated[str | None, typer.Option("--safe", help="One pair: the wanted response ...")] = None,
    unsafe: Annotated[str | None, typer.Option("--unsafe", help="... and the unwanted one.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only so many pairs from the beginning.")] = None,
    pool: Annotated[
        Pool, typer.Option("--pool", help="Last token, mean, the places both have, or all with padding (published).")
    ] = Pool.LAST,
    choose: Annotated[
        Choose, typer.Option("--choose", help="The largest summed distance, or the layer most pairs have.")
    ] = Choose.SUM,
    normed: Annotated[
        bool, typer.Option("--normed", help="Take the last layer after the final norm, as the published code does.")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the layer whose states differ most between wanted and unwanted responses, each fed alone."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        pairs = _pairs(file, safe, unsafe, limit)
        check_new_folder(out)
        lm = options.load_model(say, model, device, dtype)

        from errata.evaluation.schema import CostMeter
        from errata.locate import find_toxic_layer

        with CostMeter() as meter:
            found = find_toxic_layer(lm, pairs, pool=pool.value, choose=choose.value, normed=normed)
    shared.keep_and_show(say, found, lm, meter.cost(), out)


def _pairs(file: Path | None, safe: str | None, unsafe: str | None, limit: int | None) -> list[ResponsePair]:
    from errata.datasets.locating import ResponsePair, read_response_pairs

    if file is not None:
        if safe is not None or unsafe is not None:
            raise ConfigError("Give pairs by --file, or one by --safe and --unsafe, but not both.")
        return read_response_pairs(file, limit=limit)
    if safe is None or unsafe is None:
        raise ConfigError("There is no pair: give --file, or both --safe and --unsafe.")
    return [ResponsePair("the pair", safe, unsafe)]
