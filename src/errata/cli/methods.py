"""``errata methods``: what there is, or one method's options."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output, facts, table

if TYPE_CHECKING:
    from errata.methods import Registered


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
        listed = table("name", "strategy", "changes", "needs", "paper")
        for method in chosen:
            info = method.info
            listed.add_row(Text(info.name, style="bold"), info.strategy, info.changes, info.needs, info.paper)
        say.report([asdict(method.info) for method in chosen], "\n".join(method.info.name for method in chosen), listed)
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
