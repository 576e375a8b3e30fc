"""``errata evaluate``: a method on many cases, with intervals, beside the unedited model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output, table
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.evaluation.schema import Measured

STARTER, NONE = "starter", "none"


class Protocol(StrEnum):
    """How the cases' edits follow one another."""

    SINGLE = "single"
    BATCH = "batch"
    SEQUENTIAL = "sequential"


def run(
    model: options.Model,
    out: options.OutFolder,
    method: Annotated[
        str | None, typer.Option("--method", help="See `errata methods`; none for the unedited model.")
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option("--protocol", help="Each edit alone, all as one, or one after another.")
    ] = Protocol.SINGLE,
    cases: Annotated[
        str, typer.Option("--cases", help="CounterFact in either form, one's own cases, or starter.")
    ] = STARTER,
    limit: Annotated[int | None, typer.Option("--limit", help="Only so many cases from the beginning.")] = None,
    settings: options.Settings = None,
    corpus: options.CorpusSpec = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Edits a step of a sequential run; by default 1.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Held-out text for the perplexity; by default the built-in one.")
    ] = None,
    generation: Annotated[
        bool, typer.Option("--generation/--no-generation", help="Let the model also answer freely.")
    ] = True,
    fluency_cases: Annotated[
        int, typer.Option("--fluency-cases", min=0, help="Cases whose free text is measured.")
    ] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a method on a file of cases.

    --out gets metrics.json and records.jsonl; a killed run resumes there.
    """
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        # The library reads these again; told now, a fault costs nobody the loading of a model.
        config = _config(method, settings, corpus, batch=protocol is Protocol.BATCH)
        _check_files(cases, limit, text)
        lm = options.load_model(say, model, device, dtype)

        from errata.bench import evaluate

        measured = evaluate(
            lm, cases, method=method, protocol=protocol.value, config=config, limit=limit, out=out,
            batch_size=batch_size, text=text, generation=generation, fluency_cases=fluency_cases, seed=seed,
        )  # fmt: skip
    document = {"out": str(out), **measured.model_dump(mode="json", by_alias=True)}
    say.report(document, str(out), _table(measured), Text(f"metrics.json and records.jsonl are in {out}"))


def _config(
    method: str | None, settings: list[str] | None, corpus: str | None, *, batch: bool
) -> dict[str, Any] | None:
    if method == NONE:
        if settings or corpus is not None:
            raise ConfigError("--method none edits nothing and has no options: leave --set and --corpus out.")
        return None
    from errata.methods import default_method, get_method

    name = method or default_method(2 if batch else 1)
    return options.method_options(get_method(name), settings, corpus=corpus)


def _check_files(cases: str, limit: int | None, text: Path | None) -> None:
    from errata.datasets import read_cases, read_text

    if cases != STARTER:
        read_cases(cases, limit=limit)
    if text is not None:
        read_text(text)


def _table(measured: Measured) -> Any:
    title = " · ".join(str(measured.what[key]) for key in ("method", "protocol", "cases") if measured.what.get(key))
    made = table("metric", "value", "95% interval", "n", "unedited", title=title, right=("value", "n", "unedited"))
    for name, metric in measured.metrics.items():
        interval = "" if metric.low is None or metric.high is None else f"{metric.low:.3f} – {metric.high:.3f}"
        made.add_row(name, _number(metric.value), interval, str(metric.n), _number(metric.base))
    return made


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
