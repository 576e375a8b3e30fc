"""``errata locate values``: what the MLP's neurons promote in the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import options
from errata.cli.locate import changing, shared
from errata.cli.output import Output
from errata.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from errata.locate import Neuron


def run(
    model: options.Model,
    out: options.OutFolder,
    word: Annotated[
        list[str] | None, typer.Option("--word", help="Look for neurons that raise or lower this word; repeatable.")
    ] = None,
    words: Annotated[Path | None, typer.Option("--words", help="A text file of such words, one a line.")] = None,
    concept: Annotated[
        bool, typer.Option("--concept", help="Look along the words' mean direction instead of scoring each word.")
    ] = False,
    neuron: Annotated[
        list[str] | None, typer.Option("--neuron", help="Show this neuron, as LAYER:INDEX; repeatable.")
    ] = None,
    layer: changing.Layers = None,
    limit: Annotated[int, typer.Option("--limit", help="How many neurons.")] = 20,
    top: Annotated[int, typer.Option("--top", help="How many tokens of each end of a ranking.")] = 10,
    gain: Annotated[
        bool, typer.Option("--gain/--no-gain", help="Through the final norm's gain, or by the rows of the head alone.")
    ] = True,
    patch: changing.PatchFolder = None,
    factor: changing.Factor = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what neurons promote, or find those that promote given words (value vectors).

    Without words and neurons, those are listed that single out one token most. A patch made of them multiplies what
    they write by --factor (0 by default).
    """
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        listed = [*(word or ()), *_words(words)]
        named = [_neuron(text) for text in neuron or ()]
        if concept and not listed:
            raise ConfigError("--concept needs words to take a direction from: add --word or --words.")
        if listed and named:
            raise ConfigError("Give words to look for or neurons to show, but not both.")
        changing.check_folders(out, patch)
        changing.checked_factor(factor, patch)
        lm = options.load_model(say, model, device, dtype)

        from errata.evaluation.schema import CostMeter
        from errata.locate import find_value_vectors

        with CostMeter() as meter:
            found = find_value_vectors(
                lm,
                words=None if concept else listed,
                concept=listed if concept else None,
                neurons=named,
                layers=layer or None,
                limit=limit,
                top=top,
                gain=gain,
            )
        made = None if patch is None else found.amplify(0.0 if factor is None else factor)
    shared.keep_and_show(say, found, lm, meter.cost(), out, patch=made, patch_folder=patch)


def _words(path: Path | None) -> list[str]:
    if path is None:
        return []
    from errata.datasets.reading import text_lines

    found = [line.strip() for _, line in text_lines(path) if line.strip()]
    if not found:
        raise DatasetError(f"{path} holds no word: write one a line.")
    return found


def _neuron(text: str) -> Neuron:
    from errata.locate import Neuron

    layer, mark, index = text.partition(":")
    if not mark or not layer.strip().isdecimal() or not index.strip().isdecimal():
        raise ConfigError(f"--neuron {text!r} is not LAYER:INDEX: write for instance --neuron 24:1005.")
    return Neuron(int(layer), int(index))
