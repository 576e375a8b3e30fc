"""``errata stats``: the second moments of layers' keys, computed or taken from the cache."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.inspect import default_layers
from errata.cli.output import Output, table
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.lm import LanguageModel
    from errata.statistics import SecondMoment

ALL, DEFAULT = "all", "default"


def run(
    model: options.Model,
    layers: Annotated[
        str, typer.Option("--layers", help="default (what the methods edit), all, or such as 4 or 2-6,9.")
    ] = DEFAULT,
    corpus: options.CorpusSpec = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Sample size; by default ten tokens a key dimension.")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Measure again even where the cache has an answer.")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what layers' keys look like on ordinary text (the methods do it by themselves when they need it)."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        wanted = None if layers in (ALL, DEFAULT) else parse_layers(layers)

        from errata.methods.locate_then_edit.config import IDENTITY
        from errata.statistics import cache_folder, enough_tokens, open_corpus, second_moments

        if corpus == IDENTITY:
            raise ConfigError(
                "The corpus 'identity' stands for no text at all: give 'self', a path, or 'hub:<dataset>'."
            )
        opened = open_corpus(corpus)
        lm = options.load_model(say, model, device, dtype)
        chosen = wanted if wanted is not None else _named(lm, layers)
        fingerprint = lm.fingerprint()
        moments = second_moments(lm, chosen, opened, tokens=tokens, fingerprint=fingerprint, rebuild=rebuild)
        rows = [_row(moments[layer]) for layer in chosen]
    place = str(cache_folder(fingerprint, opened.identity, tokens or enough_tokens(lm, chosen)))
    made = table(
        "layer", "tokens", "trace", "condition number", title=f"Second moments of {lm.name} on {opened.identity}"
    )
    for row in rows:
        made.add_row(
            str(row["layer"]), f"{row['tokens']:,}", f"{row['trace']:.4g}", _condition(row["condition_number"])
        )
    say.report(
        {"model": lm.name, "corpus": opened.identity, "cache": place, "layers": rows},
        place,
        made,
        Text(f"Cache: {place}"),
    )


def parse_layers(text: str) -> list[int]:
    """``"2-4,9"`` as [2, 3, 4, 9].

    Raises:
        ConfigError: it is not written so.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise ConfigError(f"--layers {text!r} is not understood: write default, all, or such as 4 or 2-6,9.")
        chosen.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(chosen)


def _named(lm: LanguageModel, name: str) -> list[int]:
    if name == ALL:
        found = [i for i, block in enumerate(lm.architecture.blocks) if block.refusal is None]
    else:
        found = sorted(
            {layer for layers in default_layers(lm).values() if not isinstance(layers, str) for layer in layers}
        )
    if not found:
        lm.layer(0)  # raises the sentence that says why
    return found


def _row(moment: SecondMoment) -> dict[str, Any]:
    import torch

    values = torch.linalg.eigvalsh(moment.matrix.double())
    smallest, largest = float(values[0]), float(values[-1])
    return {
        "layer": moment.layer,
        "tokens": moment.count,
        "trace": float(values.sum()),
        # Rounding makes the smallest eigenvalue of a rank-deficient C a tiny number of either sign.
        "condition_number": largest / smallest if smallest > 1e-12 * largest else None,
    }


def _condition(value: float | None) -> str:
    return "singular" if value is None else f"{value:.3g}"
