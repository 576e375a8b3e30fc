"""``errata methods``: what there is, or one method's options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output, facts, table

if TYPE_CHECKING:
    from rich.table import Table

    from errata.methods import MethodInfo, Registered


def run(
    name: Annotated[str | None, typer.Argument(help="A method, to see its options.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List the methods, or show one with its options and their defaults."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        from errata.methods import get_registered, method_names

        chosen = [get_registered(each) for each in ([name] if name else method_names())]
    if name is None:
        names = "\n".join(method.info.name for method in chosen)
        say.report([asdict(method.info) for method in chosen], names, *_listed([method.info for method in chosen]))
        return
    info, settings = chosen[0].info, _settings(chosen[0])
    shown = table("option", "default", "what it does", title="Options (--set option=value)")
    for setting in settings:
        shown.add_row(setting["name"], json.dumps(setting["default"]), setting["description"])
    about = [(key, str(value)) for key, value in asdict(info).items()]
    say.report(
        {**asdict(info), "options": settings},
        "\n".join(setting["name"] for setting in settings),
        facts(about),
        "",
        shown,
    )


def _listed(infos: Sequence[MethodInfo]) -> list[Table]:
    """One table a strategy, so that a row has room on a narrow terminal."""
    listed = []
    for strategy in dict.fromkeys(info.strategy for info in infos):
        rows = table("name", "changes", "needs", "paper", title=strategy.capitalize())
        rows.columns[0].no_wrap = True
        for info in infos:
            if info.strategy == strategy:
                rows.add_row(Text(info.name, style="bold"), info.changes, info.needs, info.paper)
        listed.append(rows)
    return listed


def _settings(method: Registered[Any]) -> list[dict[str, Any]]:
    schema = method.Config.model_json_schema()["properties"]
    defaults = method.Config().model_dump(mode="json")
    return [
        {
            "name": field,
            "default": defaults[field],
            "description": about.get("description", ""),
            "schema": _range(about),
        }
        for field, about in schema.items()
    ]


def _range(about: dict[str, Any]) -> dict[str, Any]:
    """The type and bounds of an option, without what is said beside them."""
    return {key: value for key, value in about.items() if key not in ("title", "description", "default")}
