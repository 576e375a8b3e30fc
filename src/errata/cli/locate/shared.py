"""What the verbs of ``errata locate`` share: the flags that name facts, and how a result is kept and shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from errata.cli.output import Output, table
from errata.errors import ConfigError
from errata.records import Fact

if TYPE_CHECKING:
    from errata.evaluation.schema import Cost
    from errata.lm import LanguageModel
    from errata.locate import Located
    from errata.patch import Patch

STARTER = "starter"

Facts = Annotated[
    str | None,
    typer.Option("--facts", help="A file of facts or cases, or starter (the default): those that come with Errata."),
]
Prompt = Annotated[str | None, typer.Option("--prompt", help="One fact: its prompt, with {} for the subject ...")]
Subject = Annotated[str | None, typer.Option("--subject", help="... its subject ...")]
Answer = Annotated[
    str | None, typer.Option("--answer", help="... and its answer; by default what the model itself says next.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Only so many facts from the beginning.")]


def chosen_facts(
    facts: str | None, prompt: str | None, subject: str | None, answer: str | None, limit: int | None
) -> list[Fact]:
    """The facts that the flags name, before a model is loaded.

    Raises:
        ConfigError: flags that do not go together, or a limit below 1.
        RequestError, DatasetError: the facts themselves are at fault.
    """
    from errata.datasets import read_facts, starter_facts

    if prompt is None and subject is None and answer is None:
        if facts is None or facts == STARTER:
            return starter_facts(limit)
        return read_facts(facts, limit=limit)
    if facts is not None or limit is not None:
        raise ConfigError("Give one fact by --prompt and --subject, or many by --facts and --limit, but not both.")
    if prompt is None or subject is None:
        raise ConfigError(f"There is no --{'prompt' if prompt is None else 'subject'}: one fact needs both.")
    return [Fact(prompt=prompt, subject=subject, answer=answer)]


def keep_and_show(
    say: Output,
    result: Located,
    lm: LanguageModel,
    cost: Cost,
    out: Path,
    *,
    patch: Patch | None = None,
    patch_folder: Path | None = None,
) -> None:
    """Write the folder, and that of a patch where one was made, then say the result in the form the flags ask for."""
    from errata.locate import save

    with say.working():
        measured = save(result, out, lm=lm, cost=cost)
        if patch is not None and patch_folder is not None:
            patch.save_pretrained(patch_folder)
    document: dict[str, Any] = {"out": str(out), **measured.model_dump(mode="json", by_alias=True)}
    ends = f"The picture is {out}/{result.name}.png; the page is {out}/index.html"
    if patch is not None and patch_folder is not None:
        document["patch"] = str(patch_folder)
        ends += f"; the patch is {patch_folder}"
    content = result.table()
    shown = table(*content.columns, title=content.title or result.title, right=content.right)
    for row in content.rows:
        shown.add_row(*map(Text, row))
    notes = [Text(note) for note in result.notes()]
    say.report(document, str(out), shown, *notes, Text(ends))
