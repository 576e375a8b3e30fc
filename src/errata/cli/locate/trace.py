"""``errata locate trace``: which hidden states carry a fact."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from errata.cli import options
from errata.cli.locate import shared, tracing
from errata.cli.output import Output
from errata.cli.places import check_new_folder


class Measure(StrEnum):
    """What is measured of the answer."""

    PROBABILITY = "probability"
    LOGIT_DIFFERENCE = "logit-difference"


def run(
    model: options.Model,
    out: options.OutFolder,
    facts: shared.Facts = None,
    prompt: shared.Prompt = None,
    subject: shared.Subject = None,
    answer: shared.Answer = None,
    limit: shared.Limit = None,
    kinds: tracing.Kinds = "state,mlp,attention",
    window: tracing.Window = None,
    before: tracing.Before = None,
    corruption: tracing.Corruption = tracing.Corrupt.GAUSSIAN,
    noise: tracing.Noise = "3s",
    samples: tracing.Samples = 10,
    seed: tracing.Seed = 1,
    measure: Annotated[
        Measure, typer.Option("--measure", help="The answer's probability, or its logit over the likeliest other's.")
    ] = Measure.PROBABILITY,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the hidden states that carry a fact (causal tracing).

    The subject is corrupted by noise, and one clean value at a time is put back; what it gives back of the answer's
    probability is its effect. Facts that the model does not predict are left out and counted.
    """
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        chosen = tracing.trace_options(
            kinds=kinds, window=window, before=before, corruption=corruption, noise=noise, samples=samples, seed=seed,
            measure=measure,
        )  # fmt: skip
        asked = shared.chosen_facts(facts, prompt, subject, answer, limit)
        check_new_folder(out)
        lm = options.load_model(say, model, device, dtype)

        from errata.evaluation.schema import CostMeter
        from errata.locate import trace

        with CostMeter() as meter:
            found = trace(lm, asked, **chosen)
    shared.keep_and_show(say, found, lm, meter.cost(), out)
