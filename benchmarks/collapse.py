"""How long a sequence of edits can become before the model breaks: a curve for each of several editors.

    python benchmarks/collapse.py --cases counterfact.json --out runs/collapse [--most 1000] [--picture FILE.svg]

Edits are made ten at a time (the first alone) and never taken back. At each checkpoint sixty of the edits so far, a
third of them the earliest, the middle and the newest, are scored on the model as it then is, and the perplexity of
held-out text and the growth of the edited weights are measured. A run that was interrupted goes on from its patches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

import errata
from errata.bench.evaluate import without_contradictions
from errata.datasets import held_out_text
from errata.evaluation.editing import Measures, score_cases
from errata.evaluation.schema import CostMeter, Measured, Metric, model_record, read_metrics, versions, write_metrics
from errata.evaluation.summary import perplexity_metrics, summarise
from errata.lm import LanguageModel
from errata.lm.scoring import window_nlls
from errata.patch import Patch, originals
from errata.records import EditCase

EDITORS = {
    "ROME": ("rome", {}),
    "MEMIT": ("memit", {}),
    "MEMIT with memory": ("memit", {"memory": True}),
    "AlphaEdit": ("alphaedit", {}),
    "UltraEdit": ("ultraedit", {}),
}
CHECKPOINTS = (1, 10, 50, 100, 200, 500, 1000)
STEP, SAMPLE = 10, 60
CURVES = {"ES": "edits that hold (ES)", "PS": "paraphrases (PS)", "NS": "neighbours (NS)", "perplexity": "perplexity"}


def main() -> None:
    """Run what is not there yet, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="CounterFact; leave out to draw only")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--most", type=int, default=CHECKPOINTS[-1], help="edits, at most")
    parser.add_argument("--editors", nargs="+", default=list(EDITORS), choices=list(EDITORS))
    parser.add_argument("--picture", type=Path, help="SVG to draw")
    options = parser.parse_args()
    if options.cases:
        cases = without_contradictions(errata.read_cases(options.cases))[0][: options.most]
        for editor in options.editors:
            run(editor, options, cases)
    found = {editor: read_metrics(folder(options.out, editor)) for editor in EDITORS if _there(options.out, editor)}
    print(table(found))
    if options.picture:
        draw(found, options.picture)


def run(editor: str, options: argparse.Namespace, cases: Sequence[EditCase]) -> None:
    """One editor's sequence; its patches and its metrics stand in a folder of their own."""
    place = folder(options.out, editor)
    if _there(options.out, editor) and read_metrics(place).what["most"] >= options.most:
        return
    method, config = EDITORS[editor]
    lm = errata.load(options.model)
    before = window_nlls(lm, held_out_text())
    base = {case.case_id: said for case, said in zip(cases, score_some(lm, cases), strict=True)}
    metrics: dict[str, Metric] = {}
    with CostMeter() as meter:
        for number, (start, stop) in enumerate(steps(len(cases))):
            kept = place / "patches" / f"{number:05d}"
            if kept.is_dir():
                patch = Patch.from_pretrained(kept)
            else:
                patch = errata.edit(lm, [case.edit for case in cases[start:stop]], method=method, config=config)
                patch.save_pretrained(kept)
            patch.apply(lm, verify=False)
            if stop in CHECKPOINTS:
                metrics |= checkpoint(lm, cases[:stop], base, before)
                print(editor, stop, {k: round(m.value or 0, 3) for k, m in metrics.items() if k.endswith(f"@{stop}")})
        what = {"verb": "collapse", "method": method, "config": config, "most": len(cases), "step": STEP}
        model = model_record(lm, fingerprint=errata.patch.base_fingerprint(lm))
        write_metrics(place, Measured(what=what, model=model, metrics=metrics, cost=meter.cost(), versions=versions()))


def steps(count: int) -> Iterator[tuple[int, int]]:
    """The first edit alone, then up to ten, then tens."""
    at = 0
    while at < count:
        stop = min(count, 1 if at == 0 else (at // STEP + 1) * STEP)
        yield at, stop
        at = stop


def sample(cases: Sequence[EditCase]) -> list[EditCase]:
    """At most sixty: the earliest, the middle and the newest twenty."""
    if len(cases) <= SAMPLE:
        return list(cases)
    third, middle = SAMPLE // 3, len(cases) // 2
    return [*cases[:third], *cases[middle - third // 2 : middle + third // 2], *cases[-third:]]


def score_some(lm: LanguageModel, cases: Sequence[EditCase]) -> list[dict]:
    """Log-probabilities only; answers are not generated."""
    return score_cases(lm, cases, Measures(generation=False))


def checkpoint(
    lm: LanguageModel, cases: Sequence[EditCase], base: dict[str, dict], before: list[tuple[float, int]]
) -> dict[str, Metric]:
    """ES, PS, NS, perplexity and the growth of the weights after so many edits."""
    chosen = sample(cases)
    records = [
        {"case_id": case.case_id, "target_new": case.edit.target_new, "base": base[case.case_id], "after": said}
        for case, said in zip(chosen, score_some(lm, chosen), strict=True)
    ]
    found = {**summarise(records), **perplexity_metrics(before, window_nlls(lm, held_out_text()))}
    growth = [
        float(torch.linalg.vector_norm(lm.model.get_parameter(name).detach() - was) / torch.linalg.vector_norm(was))
        for name, was in originals(lm).items()
    ]
    found["growth"] = Metric(value=max(growth), low=None, high=None, n=len(growth), base=0.0)
    return {f"{name}@{len(cases)}": found[name] for name in (*CURVES, "growth")}


def folder(out: Path, editor: str) -> Path:
    """Where an editor's run stands."""
    return out / editor.lower().replace(" ", "-")


def _there(out: Path, editor: str) -> bool:
    return (folder(out, editor) / "metrics.json").is_file()


def curve(measured: Measured, name: str) -> list[tuple[int, Metric]]:
    """One measure at the checkpoints that were reached."""
    return [(n, measured.metrics[f"{name}@{n}"]) for n in CHECKPOINTS if f"{name}@{n}" in measured.metrics]


def table(found: dict[str, Measured]) -> str:
    """Markdown: one row an editor and checkpoint."""
    lines = ["| editor | edits | ES | PS | NS | perplexity | growth of W |", "|---|---|---|---|---|---|---|"]
    for editor, measured in found.items():
        for n, _ in curve(measured, "ES"):
            cells = [measured.metrics[f"{name}@{n}"] for name in (*CURVES, "growth")]
            shown = ["-" if cell.value is None else f"{cell.value:.3g}" for cell in cells]
            lines.append(f"| {editor} | {n} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw(found: dict[str, Measured], path: Path) -> None:
    """The four curves beside each other, edits on a logarithmic axis."""
    figure = Figure(figsize=(4 * len(CURVES), 3.4), layout="constrained")
    axes = figure.subplots(1, len(CURVES))
    for axis, (name, title) in zip(axes, CURVES.items(), strict=True):
        for editor, measured in found.items():
            points = [(n, m) for n, m in curve(measured, name) if m.value is not None]
            edits = [n for n, _ in points]
            axis.plot(edits, [m.value for _, m in points], marker="o", markersize=3, label=editor)
            if all(m.low is not None and m.high is not None for _, m in points):
                axis.fill_between(edits, [m.low for _, m in points], [m.high for _, m in points], alpha=0.12)
        axis.set(title=title, xlabel="edits", xscale="log")
        if name == "perplexity":
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.02)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
