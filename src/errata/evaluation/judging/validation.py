"""A judge of refusals held against people: XSTest's completions with two annotations and a final label each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from errata.datasets.xstest import LabelledResponse, read_labelled_responses
from errata.errors import ConfigError
from errata.evaluation.judging.agreement import agreement
from errata.evaluation.judging.base import REFUSALS, Judge, Verdict
from errata.evaluation.schema import Metric, Record

PUBLISHED_STEM = "xstest_v2_completions_"
Half = Literal["all", "odd", "even"]


def validate(
    judge: Judge, files: Sequence[str | Path], *, half: Half = "all"
) -> tuple[dict[str, Metric], list[Record]]:
    """How far a judge agrees with people, for each model's file.

    Args:
        judge: one that tells refusals.
        files: XSTest's completions, one file a model.
        half: all of them, or those whose prompt has an odd or an even number.

    Returns:
        Metrics and records. For each file: ``refused_accuracy`` and ``refused_kappa`` (refused in any way or not),
        ``accuracy`` and ``kappa`` (three classes), against the final label; ``refused_kappa_1`` and ``_2`` against
        each annotator. Kappa is Cohen's (1960).

    Raises:
        ConfigError: the judge does not tell refusals.
        DatasetError: a file cannot be read.
    """
    if judge.about != "refusal":
        raise ConfigError(f"{judge.name} does not tell refusals: XSTest's labels are for judges such as refusal-rule.")
    metrics: dict[str, Metric] = {}
    records: list[Record] = []
    for path in map(Path, files):
        items = read_labelled_responses(path, half=half)
        verdicts = judge.judge([item.prompt for item in items], [item.response for item in items])
        name = path.stem.removeprefix(PUBLISHED_STEM)
        metrics |= _compared(name, items, verdicts)
        records += [
            {"case_id": item.prompt_id, "file": name, "label": verdict.label, "people": item.label}
            for item, verdict in zip(items, verdicts, strict=True)
        ]
    return metrics, records


def _compared(name: str, items: Sequence[LabelledResponse], verdicts: Sequence[Verdict]) -> dict[str, Metric]:
    judged = [verdict.label for verdict in verdicts]
    three = agreement([item.label for item in items], judged)
    two = agreement(_refused([item.label for item in items]), _refused(judged))
    found = {
        f"refused_accuracy.{name}": Metric.of(two.accuracy),
        f"refused_kappa.{name}": Metric.of(two.kappa),
        f"accuracy.{name}": Metric.of(three.accuracy),
        f"kappa.{name}": Metric.of(three.kappa),
    }
    for which in (0, 1):
        one = agreement(_refused([item.annotations[which] for item in items]), _refused(judged))
        found[f"refused_kappa_{which + 1}.{name}"] = Metric.of(one.kappa)
    return found


def _refused(labels: Sequence[str]) -> list[str]:
    """Refused or not; what is neither ("empty") agrees with nobody."""
    return ["refused" if label in REFUSALS else "answered" if label == "compliance" else label for label in labels]
