"""``errata.evaluate``: a method, a protocol and cases in; ``metrics.json`` and ``records.jsonl`` out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from errata.bench.protocols import Run, batch, sequential, single
from errata.datasets import held_out_text, read_cases, starter_cases
from errata.errors import ConfigError, DatasetError, RequestError
from errata.evaluation.schema import CostMeter, Measured, RecordWriter, versions, write_metrics
from errata.evaluation.summary import summarise
from errata.files import finite, write_json
from errata.lm.language_model import LanguageModel
from errata.methods import MethodConfig, default_method, get_method
from errata.records import EditCase, check_consistent

Protocol = Literal["single", "batch", "sequential"]
PROTOCOLS = {"single": single, "batch": batch, "sequential": sequential}
NO_METHOD = "none"
STARTER = "starter"
RUN_FILE = "run.json"


def evaluate(
    lm: LanguageModel,
    cases: Sequence[EditCase] | str | os.PathLike[str] = STARTER,
    *,
    method: str | None = None,
    protocol: Protocol = "single",
    config: Mapping[str, Any] | MethodConfig | None = None,
    limit: int | None = None,
    out: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    text: str | os.PathLike[str] | None = None,
    generation: bool = True,
    fluency_cases: int = 20,
    seed: int = 0,
) -> Measured:
    """Measure a method on cases, with the unedited model beside it; the model is unchanged on return.

    Args:
        lm: the model.
        cases: a file (either CounterFact form, or one's own JSONL or CSV), "starter" for the shipped ones, or cases.
        method: by name, or "none" to score the unedited model; by default R-ROME, or MEMIT for more than one at a time.
        protocol: "single", "batch" or "sequential".
        config: the method's options.
        limit: use the first so many cases.
        out: folder for ``metrics.json`` and ``records.jsonl``; a killed run started there again resumes.
        batch_size: edits a step of a sequential run (1 by default).
        text: a file of held-out text for perplexity; by default a text of our own that ships with the package.
        generation: also generate answers, which takes most of the time.
        fluency_cases: on how many cases texts of a hundred tokens are sampled for GE.
        seed: of samples and bootstraps.

    Raises:
        ConfigError: an unknown protocol, method or option, or a folder that holds another run.
        DatasetError: the cases or the text cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"There is no protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
    if batch_size is not None and (batch_size < 1 or protocol != "sequential"):
        raise ConfigError(
            "batch_size says how many edits a step of a sequential run makes: give it 1 or more, and only there."
        )
    named = STARTER if cases == STARTER else (str(cases) if isinstance(cases, str | os.PathLike) else "given")
    chosen = _cases(cases, limit)
    held_out = _text(text)
    left_out: list[str] = []
    if protocol != "single":
        chosen, left_out = without_contradictions(chosen)
    at_once = 1 if protocol == "single" else (batch_size or 1) if protocol == "sequential" else len(chosen)
    name = method or default_method(at_once)
    what: dict[str, Any] = {
        "verb": "evaluate", "method": name, "protocol": protocol, "cases": named, "limit": limit, "n": len(chosen),
        "seed": seed,
        "text": str(text) if text is not None else "shipped", "generation": generation, "fluency_cases": fluency_cases,
    }  # fmt: skip
    editor, settings = None, None
    if name != NO_METHOD:
        editor = get_method(name)
        settings = editor.configure(config)
        what["config"] = settings.model_dump(mode="json")
    if protocol == "sequential":
        what["batch_size"] = batch_size or 1
    if left_out:
        what["left_out"] = left_out
    model = {
        "name": lm.name, "fingerprint": lm.fingerprint(), "dtype": str(lm.dtype).removeprefix("torch."),
        "quantised_origin": lm.quantised_origin,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out) if out is not None else Path(scratch)
        _claim(folder, {"what": what, "model": model})
        with CostMeter() as meter, RecordWriter(folder, key=("case_id", "phase")) as records:
            if editor is None or settings is None:
                run = Run(lm, chosen, None, None, records, folder, held_out, generation, fluency_cases, seed)  # type: ignore[arg-type]
                run.base()
                metrics = {}
            else:
                run = Run(
                    lm, chosen, editor, settings, records, folder, held_out, generation, fluency_cases, seed, batch_size
                )
                metrics = PROTOCOLS[protocol](run)
            joined = join_phases(list(records.done.values()))
        metrics = {**summarise(joined, seed=seed), **metrics}
        seconds = [r["edit_cpu_seconds"] for r in joined if r.get("edit_cpu_seconds") is not None]
        cost = meter.cost().model_copy(
            update={"per_edit_cpu_seconds": sum(seconds) / len(seconds) if seconds else None}
        )
        measured = Measured(what=what, model=model, metrics=metrics, cost=cost, versions=versions())
        write_metrics(folder, measured)
    return measured


def join_phases(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record a case from the lines of ``records.jsonl``; without an edited phase the base stands for it too."""
    after = {line["case_id"]: line for line in lines if line["phase"] == "after"}
    joined = []
    for line in lines:
        if line["phase"] != "base":
            continue
        edited = after.get(line["case_id"], {} if after else line)
        if not edited:
            continue
        joined.append({**line, **edited, "base": line["said"], "after": edited["said"]})
    return joined


def without_contradictions(cases: Sequence[EditCase]) -> tuple[list[EditCase], list[str]]:
    """The cases that can be edited together, and the ids of those that contradict an earlier one."""
    kept: list[EditCase] = []
    left_out: list[str] = []
    seen: dict[tuple[str, str], EditCase] = {}
    for case in cases:
        key = (case.edit.prompt.casefold(), case.edit.subject.casefold())
        try:
            check_consistent([seen[key].edit, case.edit] if key in seen else [case.edit])
        except RequestError:
            left_out.append(case.case_id)
            continue
        seen.setdefault(key, case)
        kept.append(case)
    return kept, left_out


def _cases(cases: Sequence[EditCase] | str | os.PathLike[str], limit: int | None) -> list[EditCase]:
    if isinstance(cases, str) and cases == STARTER:
        return starter_cases(limit)
    if isinstance(cases, str | os.PathLike):
        return read_cases(Path(cases), limit=limit)
    chosen = list(cases)[:limit]
    if not chosen:
        raise DatasetError("There is no case to evaluate: give at least one.")
    return chosen


def _text(text: str | os.PathLike[str] | None) -> str:
    if text is None:
        return held_out_text()
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The held-out text {text} cannot be read as UTF-8 ({error}): give a text file.") from None
    if len(content.split()) < 50:
        raise DatasetError(f"The held-out text {text} is too short for a perplexity: give some hundred words.")
    return content


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Mark the folder as this run's, or refuse one that holds another: its records would be mixed with these."""
    path = folder / RUN_FILE
    wanted = json.loads(json.dumps(finite(identity), ensure_ascii=False))
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != wanted:
            raise ConfigError(
                f"{folder} holds a run with other settings or another model: choose another folder, or remove it."
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no run of Errata's: choose another folder.")
    write_json(path, wanted)
