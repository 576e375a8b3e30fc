"""``errata evaluate``: a method on many cases, with intervals, beside the unedited model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output, table

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
        str, typer.Option("--cases", help="A file in a published form or one's own, or starter.")
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
    base: Annotated[
        Path | None, typer.Option("--base", help="An earlier run's --out, whose scores of the unedited model serve.")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Of a set in several languages, the one to edit in.")
    ] = None,
    test_languages: Annotated[
        str | None, typer.Option("--test-languages", help="... and those to test in beside it, as en,zh.")
    ] = None,
    zsre_target: Annotated[
        str | None, typer.Option("--zsre-target", help="Of zsRE, write the right answers, or alt: the other ones.")
    ] = None,
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
        config = options.all_settings(settings, corpus=corpus) or None
        languages = [code.strip() for code in test_languages.split(",")] if test_languages else None
        given = {"language": language, "test_languages": languages, "zsre_target": zsre_target}
        reading = {name: value for name, value in given.items() if value is not None} or None

        from errata.bench import evaluate, prepare

        # The library does this again; told now, a fault costs nobody the loading of a model.
        prepare(
            cases, method=method, protocol=protocol.value, config=config, limit=limit, batch_size=batch_size, text=text,
            seed=seed, reading=reading,
        )  # fmt: skip
        lm = options.load_model(say, model, device, dtype)
        measured = evaluate(
            lm, cases, method=method, protocol=protocol.value, config=config, limit=limit, out=out,
            batch_size=batch_size, text=text, generation=generation, fluency_cases=fluency_cases, seed=seed,
            base=base, reading=reading,
        )  # fmt: skip
    document = {"out": str(out), **measured.model_dump(mode="json", by_alias=True)}
    say.report(document, str(out), _table(measured), Text(f"metrics.json and records.jsonl are in {out}"))


def _table(measured: Measured) -> Any:
    title = " · ".join(str(measured.what[key]) for key in ("method", "protocol", "cases") if measured.what.get(key))
    made = table("metric", "value", "95% interval", "n", "unedited", title=title, right=("value", "n", "unedited"))
    for name, metric in measured.metrics.items():
        interval = "" if metric.low is None or metric.high is None else f"{metric.low:.3f} – {metric.high:.3f}"
        made.add_row(name, _number(metric.value), interval, str(metric.n), _number(metric.base))
    return made


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
