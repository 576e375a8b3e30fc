"""``errata doctor``: is everything there that editing needs?"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

import typer
from rich.text import Text

from errata.cli import options
from errata.cli.output import Output, table
from errata.files import cache_dir

Status = Literal["ok", "note", "broken"]
STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}
EXTRAS = {"hub": "datasets", "lora": "peft", "multi-device": "accelerate", "probe": "sklearn"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at; ``broken`` is what editing cannot do without."""

    name: str
    status: Status
    detail: str


def run(as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Check this installation, with an edit of a tiny model; exits with 1 where something essential is broken."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        checks: list[Callable[[], list[Finding]]] = [
            _packages,
            _machine,
            _cache,
            _embedded,
            _extras,
            _methods,
            _self_test,
        ]
        findings = [finding for check in checks for finding in check()]
    broken = [finding.name for finding in findings if finding.status == "broken"]
    made = table("what", "", "detail")
    for finding in findings:
        made.add_row(finding.name, Text(finding.status, style=STYLES[finding.status]), finding.detail)
    verdict = f"Broken: {', '.join(broken)}." if broken else "Ready to edit."
    say.report({"ok": not broken, "checks": [asdict(finding) for finding in findings]}, verdict, made, verdict)
    if broken:
        raise typer.Exit(1)


def _packages() -> list[Finding]:
    findings = [Finding("Python", "ok" if sys.version_info >= (3, 11) else "broken", platform.python_version())]
    for package in ("errata", "torch", "transformers", "safetensors"):
        try:
            findings.append(Finding(package, "ok", version(package)))
        except PackageNotFoundError:
            findings.append(Finding(package, "broken", f"not installed: pip install {package}"))
    return findings


def _machine() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} GPU(s), first: {torch.cuda.get_device_name(0)}"
    else:
        device = f"cpu, {torch.get_num_threads()} of {os.cpu_count()} threads"
    return [Finding("device", "ok", device)]


def _cache() -> list[Finding]:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        reason = error.strerror or str(error)
        return [
            Finding("cache", "broken", f"{folder} cannot be written ({reason}): set ERRATA_CACHE to another folder")
        ]
    return [Finding("cache", "ok", f"{folder}, writable")]


def _embedded() -> list[Finding]:
    from errata.lm.load import EMBEDDED, EMBEDDED_INSTALL, EMBEDDED_PACKAGE, ORIGIN_FILE

    if (cache_dir("models", EMBEDDED) / ORIGIN_FILE).is_file():
        return [Finding(EMBEDDED, "ok", "in the cache")]
    if find_spec(EMBEDDED_PACKAGE) is not None:
        return [Finding(EMBEDDED, "ok", "installed; converted once when it is first loaded")]
    return [Finding(EMBEDDED, "note", f"not installed, so the hub is asked for it: {EMBEDDED_INSTALL}")]


def _extras() -> list[Finding]:
    return [
        Finding(f"extra {extra}", "ok", f"{package} is installed")
        if find_spec(package)
        else Finding(f"extra {extra}", "note", f"not installed: pip install 'errata[{extra}]'")
        for extra, package in EXTRAS.items()
    ]


def _methods() -> list[Finding]:
    from errata.errors import ErrataError
    from errata.methods import get_registered, method_names

    names, findings = method_names(), []
    for name in names:
        try:
            get_registered(name)
        except ErrataError as error:
            findings.append(Finding(f"method {name}", "note", str(error)))
    if not names:
        return [Finding("methods", "broken", "none is registered: install errata again")]
    return [*findings, Finding("methods", "ok", ", ".join(names))]


def _self_test() -> list[Finding]:
    """Edit a tiny random model, apply the patch, take it off, and compare every bit."""
    try:
        import errata
        from errata.testing import tiny

        lm = errata.load(tiny("llama", layers=2), device="cpu")
        before = lm.fingerprint()
        wanted = errata.Edit(prompt="{} is in", subject="The Eiffel Tower", target_new="Rome")
        patch = errata.edit(
            lm, wanted, method="r-rome", config={"corpus": "identity", "contexts": 1, "steps": 3, "layer": 0}
        )
        patch.apply(lm)
        changed = lm.fingerprint() != before
        patch.revert(lm)
        same = lm.fingerprint() == before
    except Exception as error:  # whatever it is, a doctor names it and goes on
        return [Finding("self-test", "broken", f"{type(error).__name__}: {error}")]
    if not (changed and same):
        return [Finding("self-test", "broken", "an edit of a tiny model did not come off again bit for bit")]
    return [Finding("self-test", "ok", "a tiny model was edited and reverted bit for bit")]
