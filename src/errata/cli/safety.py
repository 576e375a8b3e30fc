"""``errata safety``: what a model answers to attacks, to harmless look-alikes, and to openings; before and after."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.judge import JudgeName, JudgeSettings
from errata.cli.measured import judge_cost, metrics_table
from errata.cli.output import Output
from errata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from errata.bench.safety import Item

BENIGN = "benign"


class Suite(StrEnum):
    """What is measured."""

    SAFEEDIT = "safeedit"
    OVER_REFUSAL = "over-refusal"
    TOXICITY = "toxicity"


def run(
    model: options.Model,
    out: options.OutFolder,
    suite: Annotated[
        Suite, typer.Option("--suite", help="Attacks (DS, DG), XSTest's look-alikes, or toxicity of continuations.")
    ] = Suite.SAFEEDIT,
    file: Annotated[
        str, typer.Option("--file", "-f", help="Your copy of the set; benign: the made-up topic that comes along.")
    ] = BENIGN,
    patch: Annotated[
        str | None, typer.Option("--patch", "-p", help="Measure before and after this patch: a folder or hub id.")
    ] = None,
    judge: JudgeName = "refusal-rule",
    settings: JudgeSettings = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many from the beginning.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Longest response; 600, or 20 for toxicity.")
    ] = None,
    continuations: Annotated[
        int, typer.Option("--continuations", min=1, help="Sampled for each opening (toxicity); numbers grow with it.")
    ] = 25,
    plain: Annotated[bool, typer.Option("--plain", help="Ask without the model's chat template.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of what is sampled.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how safe a model's answers are, with or without a patch.

    --out gets metrics.json and records.jsonl; a killed run resumes there.
    """
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        items = _items(suite, file, limit)

        from errata.bench.safety import Talk, measure_safety
        from errata.evaluation.judging import get_judge
        from errata.methods.detox import Wording
        from errata.patch import Patch

        chosen = get_judge(judge, **options.parse_settings(settings))
        longest = max_new_tokens or (20 if suite is Suite.TOXICITY else 600)
        talk = Talk(max_new_tokens=longest, plain=plain, continuations=continuations, seed=seed)
        made = None if patch is None else Patch.from_pretrained(patch)
        lm = options.load_model(say, model, device, dtype)
        around = None if made is None else Wording.of(made)
        wording = None if around is None or around == around.bare else around.asking(lm)
        measured = measure_safety(lm, items, chosen, patch=made, wording=wording, talk=talk, out=out, source=file)
    document = {"out": str(out), **measured.model_dump(mode="json", by_alias=True)}
    title = f"{suite.value} · {file} · {chosen.name}"
    say.report(
        document, str(out), metrics_table(measured, title, shown=_shown), *judge_cost(measured),
        Text(f"metrics.json and records.jsonl are in {out}"),
    )  # fmt: skip


def _shown(name: str) -> bool:
    """Of the numbers for each category and each attack the screen shows few; the files have all."""
    return ".attack=" not in name and (".category=" not in name or name.startswith(("DS.", "DG_Avg.")))


def _items(suite: Suite, file: str, limit: int | None) -> Sequence[Item]:
    from errata.datasets.restricted import benign_safety_cases
    from errata.datasets.safeedit import read_safeedit
    from errata.datasets.toxicity_prompts import read_openings
    from errata.datasets.xstest import read_look_alikes

    if suite is Suite.SAFEEDIT:
        return benign_safety_cases(limit=limit) if file == BENIGN else read_safeedit(file, limit=limit)
    if file == BENIGN:
        raise ConfigError(f"The suite {suite.value} has no stand-in: give your copy of the set by --file.")
    if suite is Suite.OVER_REFUSAL:
        return read_look_alikes(file, limit=limit)
    return read_openings(file, limit=limit)
