"""The answers before and after an edit as one HTML file that opens anywhere, also without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from errata.bench.preview import Preview
from errata.files import write_text
from errata.patch import Patch

TEMPLATE = "before_after.html.j2"
FINGERPRINT_SHOWN = 12


def write_before_after(
    path: str | Path,
    *,
    preview: Preview,
    patch: Patch,
    model_name: str,
    quantised_origin: str | None = None,
    folder: str | Path | None = None,
) -> None:
    """Write the page: styles inside, no scripts, nothing fetched.

    Args:
        path: of the file; one that is there is replaced.
        preview: the answers before and after.
        patch: what it is about.
        model_name: as the user calls it.
        quantised_origin: the packed format its weights were expanded from, or None.
        folder: where the patch is kept, for the commands that are shown.

    Raises:
        StorageError: it cannot be written.
    """
    write_text(Path(path), render(preview, patch, model_name, quantised_origin, folder))


def render(
    preview: Preview,
    patch: Patch,
    model_name: str,
    quantised_origin: str | None = None,
    folder: str | Path | None = None,
) -> str:
    """The page as text."""
    template = _environment().from_string((files("errata.web") / TEMPLATE).read_text(encoding="utf-8"))
    change = preview.perplexity_after / preview.perplexity_before - 1 if preview.perplexity_before else None
    return template.render(
        rows=preview.rows,
        # What changed is what a reader looks for, so it stands first.
        controls=sorted(preview.controls, key=lambda control: control.same),
        preview=preview,
        perplexity_change=change,
        model=model_name,
        place=str(folder) if folder is not None else "FOLDER",
        facts=_facts(patch, quantised_origin),
        created=patch.card.created,
        version=patch.card.versions.get("errata", ""),
    )


def _facts(patch: Patch, quantised_origin: str | None) -> list[tuple[str, str]]:
    about, base = patch.describe(), patch.card.base
    layers = sorted({int(n) for name in about["parameters"] for n in re.findall(r"\.(\d+)\.", name)[:1]})
    origin = quantised_origin or base.quantised_origin
    largest = about["largest_relative_norm"]
    facts = [
        ("method", about["method"]),
        ("layer" if len(layers) == 1 else "layers", ", ".join(map(str, layers))),
        ("rank of the change", "" if about["rank"] is None else str(about["rank"])),
        ("largest change of a weight matrix", "" if largest is None else f"{largest:.2%} of its norm"),
        ("size", f"{about['num_bytes'] / 1e3:,.0f} kB"),
        ("made for", f"{base.name}, {base.dtype}" + (f" expanded from {origin}" if origin else "")),
        ("fingerprint of those weights", base.fingerprint[:FINGERPRINT_SHOWN]),
        ("second moments from", str(patch.card.config.get("corpus", ""))),
    ]
    return [(name, value) for name, value in facts if value]


def _environment() -> Environment:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    filters: dict[str, Callable[..., Any]] = {"percent": _percent, "python": json.dumps}
    environment.filters.update(filters)
    return environment


def _percent(probability: float) -> str:
    if probability >= 0.001 or probability == 0.0:
        return f"{probability:.1%}"
    return "below 0.1%"
