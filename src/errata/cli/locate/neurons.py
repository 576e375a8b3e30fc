"""``errata locate neurons``: the MLP neurons to which a fact's answer is attributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import options
from errata.cli.locate import changing, shared
from errata.cli.output import Output
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.locate import FactPrompts, KnowledgeNeurons
    from errata.patch import Patch


def run(
    model: options.Model,
    out: options.OutFolder,
    facts: Annotated[
        str | None,
        typer.Option(
            "--facts", help="A file of facts (prompts and answer) or cases, or starter (the default): Errata's own."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="One wording of one fact; repeat it for other wordings.")
    ] = None,
    answer: shared.Answer = None,
    limit: shared.Limit = None,
    of: changing.Of = changing.Measured.PROBABILITY,
    steps: changing.Steps = 20,
    rule: changing.Nodes = changing.Rule.MIDPOINT,
    tolerance: changing.Tolerance = 0.02,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Share of a prompt's largest score; by default 0.2.")
    ] = None,
    share: Annotated[float, typer.Option("--share", help="More than this share of a fact's prompts must agree.")] = 0.7,
    adjust: Annotated[
        bool, typer.Option("--adjust", help="Move the share until facts have 2 to 5 neurons on average.")
    ] = False,
    drop_common: Annotated[
        float | None,
        typer.Option("--drop-common", help="Leave out neurons that more than this share of the other facts have."),
    ] = None,
    by_activation: Annotated[
        bool, typer.Option("--by-activation", help="Rank by the size of the activation, the published baseline.")
    ] = False,
    layer: changing.Layers = None,
    effects: changing.Effects = False,
    patch: changing.PatchFolder = None,
    operation: Annotated[
        changing.Operation, typer.Option("--operation", help="What the patch does; erase takes the 20 most shared.")
    ] = changing.Operation.SUPPRESS,
    factor: changing.Factor = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the neurons that facts are attributed to (knowledge neurons).

    Integrated gradients along each layer's activations on the last token; a fact's neurons are those that its wordings
    agree on. A patch made of them changes them at every position of every text, not only there.
    """
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        from errata.evaluation.schema import CostMeter
        from errata.locate import NeuronOptions, find_knowledge_neurons
        from errata.locate.integral import nodes

        chosen = NeuronOptions(
            of=of.value,
            steps=steps,
            rule=rule.value,
            tolerance=tolerance or None,
            threshold=threshold,
            share=share,
            adjust=adjust,
            drop_common=drop_common,
            by="activation" if by_activation else "attribution",
            layers=tuple(layer) if layer else None,
        )
        nodes(chosen.rule, chosen.steps)
        changing.check_folders(out, patch)
        changing.checked_factor(factor, patch)
        if factor is not None and operation is not changing.Operation.AMPLIFY:
            raise ConfigError(f"--factor belongs to --operation amplify: to {operation.value} is to multiply by 0.")
        asked = _facts(facts, prompt, answer, limit)
        lm = options.load_model(say, model, device, dtype)
        with CostMeter() as meter:
            found = find_knowledge_neurons(lm, asked, chosen)
            if effects:
                found = found.with_effects()
        made = None if patch is None else _patch(found, operation, factor)
    shared.keep_and_show(say, found, lm, meter.cost(), out, patch=made, patch_folder=patch)


def _facts(facts: str | None, prompt: list[str] | None, answer: str | None, limit: int | None) -> list[FactPrompts]:
    from errata.datasets import starter_cases
    from errata.datasets.locating import FactPrompts, read_fact_prompts

    if prompt or answer is not None:
        if facts is not None or limit is not None:
            raise ConfigError("Give one fact by --prompt and --answer, or many by --facts and --limit, but not both.")
        if not prompt:
            raise ConfigError("There is no --prompt that the --answer completes: add it.")
        return [FactPrompts("the fact", tuple(prompt), answer)]
    if facts is None or facts == shared.STARTER:
        return [FactPrompts.of(case) for case in starter_cases(limit)]
    return read_fact_prompts(facts, limit=limit)


def _patch(found: KnowledgeNeurons, operation: changing.Operation, factor: float | None) -> Patch:
    if operation is changing.Operation.SUPPRESS:
        return found.suppress()
    return found.erase() if operation is changing.Operation.ERASE else found.amplify(2.0 if factor is None else factor)
