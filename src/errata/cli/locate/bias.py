"""``errata locate bias``: which hidden states carry a preference between two continuations."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from errata.cli import options
from errata.cli.locate import shared, tracing
from errata.cli.output import Output
from errata.cli.places import check_new_folder
from errata.errors import ConfigError
from errata.records import Fact


class Measure(StrEnum):
    """Of what the difference is taken."""

    PROBABILITY_DIFFERENCE = "probability-difference"
    LOGIT_DIFFERENCE = "logit-difference"


def run(
    model: options.Model,
    out: options.OutFolder,
    facts: Annotated[
        str | None,
        typer.Option(
            "--facts", help="A file of prompt, subject, answer and other; by default sentences about 24 occupations."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One prompt, with {} for the subject ...")] = None,
    subject: shared.Subject = None,
    answer: Annotated[str, typer.Option("--answer", help="... and its two continuations: this one ...")] = "he",
    other: Annotated[str, typer.Option("--other", help="... against this one.")] = "she",
    limit: shared.Limit = None,
    kinds: tracing.Kinds = "state,mlp,attention",
    window: tracing.Window = None,
    before: tracing.Before = None,
    corruption: tracing.Corruption = tracing.Corrupt.GAUSSIAN,
    noise: tracing.Noise = "3s",
    samples: tracing.Samples = 10,
    seed: tracing.Seed = 1,
    measure: Annotated[
        Measure, typer.Option("--measure", help="The difference of probabilities, or of logits.")
    ] = Measure.PROBABILITY_DIFFERENCE,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the hidden states that carry a preference between two continuations, such as he and she.

    The same as errata locate trace for the difference of the two, in the direction that the model prefers.
    """
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        chosen = tracing.trace_options(
            kinds=kinds, window=window, before=before, corruption=corruption, noise=noise, samples=samples, seed=seed,
            measure=measure,
        )  # fmt: skip
        asked = _prompts(facts, prompt, subject, answer, other, limit)
        check_new_folder(out)
        lm = options.load_model(say, model, device, dtype)

        from errata.evaluation.schema import CostMeter
        from errata.locate import trace_bias

        with CostMeter() as meter:
            found = trace_bias(lm, asked, **chosen)
    shared.keep_and_show(say, found, lm, meter.cost(), out)


def _prompts(
    facts: str | None, prompt: str | None, subject: str | None, answer: str, other: str, limit: int | None
) -> list[Fact]:
    from errata.datasets import occupation_facts, read_facts

    if prompt is None and subject is None:
        return occupation_facts(limit) if facts is None else read_facts(facts, limit=limit)
    if facts is not None or limit is not None:
        raise ConfigError("Give one prompt by --prompt and --subject, or many by --facts and --limit, but not both.")
    if prompt is None or subject is None:
        raise ConfigError(f"There is no --{'prompt' if prompt is None else 'subject'}: one prompt needs both.")
    return [Fact(prompt=prompt, subject=subject, answer=answer, other=other)]
