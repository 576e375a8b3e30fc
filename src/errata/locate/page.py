"""A result as one HTML page: picture and table inside, no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from errata.evaluation.schema import Measured
    from errata.locate.result import Table

TEMPLATE = "page.html.j2"
FINGERPRINT_SHOWN = 12


def render(title: str, png: str, table: Table, measured: Measured, notes: Sequence[str]) -> str:
    """The page as text.

    Args:
        title: its heading. png: the picture, in base64. table: what stands below it.
        measured: for the model, the options and the headline numbers. notes: sentences under the picture.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["number"] = _number
    template = environment.from_string((files("errata.locate") / TEMPLATE).read_text(encoding="utf-8"))
    model = dict(measured.model)
    model["fingerprint"] = str(model["fingerprint"])[:FINGERPRINT_SHOWN]
    return template.render(
        title=title,
        png=png,
        table=table,
        notes=notes,
        metrics=measured.metrics,
        about={key: value for key, value in {**measured.what, **model}.items() if value is not None},
        version=measured.versions.get("errata", ""),
    )


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"
