"""The table of the README: R-ROME alone and MEMIT in one batch on CounterFact, for one or more corpora behind C.

    python benchmarks/counterfact.py --cases counterfact.json --out runs/counterfact [--corpus self --corpus FILE]

Each run leaves ``metrics.json`` and ``records.jsonl`` below --out and is resumed when it was interrupted; the table is
printed from those files alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import errata
from errata.evaluation.schema import Measured, Metric

RUNS = (("r-rome", "single"), ("memit", "batch"))
COLUMNS = ("ES", "PS", "NS", "S", "strict_success", "unchanged_neighbours", "perplexity_change")


def main() -> None:
    """Measure what is asked and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", required=True, help="CounterFact, full or short form")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--corpus", action="append", help="where C comes from; may be given several times")
    parser.add_argument("--text", help="held-out text for perplexity; by default the shipped one")
    options = parser.parse_args()
    lm = errata.load(options.model)
    rows = []
    for corpus in options.corpus or ["self"]:
        for method, protocol in RUNS:
            name = f"{method}-{protocol}-{Path(corpus).stem}"
            measured = errata.evaluate(
                lm,
                options.cases,
                method=method,
                protocol=protocol,
                limit=options.limit,
                config={"corpus": corpus},
                out=options.out / name,
                text=options.text,
            )
            rows.append((f"{method}, {protocol}", Path(corpus).stem, measured))
    print(table(rows))


def table(rows: list[tuple[str, str, Measured]]) -> str:
    """Markdown, from the measured numbers."""
    head = ["run", "C from", *COLUMNS, "CPU s / edit"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    base = rows[0][2].metrics
    lines.append("| unedited | | " + " | ".join(_base(base[c]) if c in base else "" for c in COLUMNS) + " | |")
    for name, corpus, measured in rows:
        cells = [_cell(measured.metrics[c]) if c in measured.metrics else "" for c in COLUMNS]
        seconds = measured.cost.per_edit_cpu_seconds
        cells.append(f"{seconds:.1f}" if seconds is not None else "")
        lines.append(f"| {name} | {corpus} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(metric: Metric) -> str:
    if metric.value is None or metric.low is None or metric.high is None:
        return "-" if metric.value is None else f"{metric.value:.3f}"
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def _base(metric: Metric) -> str:
    return "" if metric.base is None else f"{metric.base:.3f}"


if __name__ == "__main__":
    main()
