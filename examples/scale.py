"""Thousands of edits, in one call or in steps, with what they cost as their number grows.

    python examples/scale.py --cases counterfact.json --method ultraedit --edits 10000 --out runs/ultraedit
    python examples/scale.py --cases counterfact.json --method memit --edits 2000 --out runs/memit
    python examples/scale.py --cases counterfact.json --method memit --edits 2000 --step 100 --out runs/memit-steps

Kill it at any point and start it again: finished steps are read from their patches, and a step that was broken off goes
on from the values it had found. ``scale.log`` gets one line a step and, within a step, one every half minute: edits,
seconds, memory. At the end two hundred of the edits are scored, spread evenly over all.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import errata
from errata.bench.evaluate import without_contradictions
from errata.datasets import held_out_text
from errata.evaluation.editing import Measures, score_cases
from errata.evaluation.schema import CostMeter, Measured, model_record, versions, write_metrics
from errata.evaluation.summary import perplexity_metrics, summarise
from errata.lm.scoring import window_nlls
from errata.patch import Patch, base_fingerprint

SCORED, HEARTBEAT = 200, 30.0


def main() -> None:
    """Edit, then score, then write ``metrics.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", required=True, nargs="+", help="one or more files of cases, as errata.read_cases reads"
    )
    parser.add_argument("--method", default="memit")
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--step", type=int, help="edits a step; by default all in one")
    parser.add_argument("--memory", action="store_true", help="MEMIT's family: keep what earlier steps wrote")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lm = errata.load(options.model)
    cases, left_out = without_contradictions([case for file in options.cases for case in errata.read_cases(file)])
    if len(cases) < options.edits:
        parser.error(f"the files hold {len(cases)} cases that do not contradict each other: ask for fewer edits")
    cases = cases[: options.edits]
    step, config = options.step or len(cases), {"memory": True} if options.memory else {}
    say = Log(options.out / "scale.log")
    say(f"{options.method}, {len(cases)} edits, {step} a step, {len(left_out)} contradicting cases passed over")

    text = held_out_text()
    before = window_nlls(lm, text)
    scored = cases[:: max(1, len(cases) // SCORED)][:SCORED]
    base = score_cases(lm, scored, Measures(generation=False))
    with CostMeter() as meter:
        for number, at in enumerate(range(0, len(cases), step)):
            chosen = [case.edit for case in cases[at : at + step]]
            kept, values = options.out / "patches" / f"{number:04d}", options.out / "values" / f"{number:04d}"
            with CostMeter() as one:
                if kept.is_dir():
                    patch, found = Patch.from_pretrained(kept), "read"
                else:
                    with heartbeat(say, values):
                        patch = errata.edit(lm, chosen, method=options.method, config=config, resume=values)
                    patch.save_pretrained(kept)
                    found = "solved"
                patch.apply(lm, verify=False)
            cost = one.cost(len(chosen))
            say(
                f"{at + len(chosen)} edits: step {found} in {cost.cpu_seconds:.0f} CPU s "
                f"({cost.per_edit_cpu_seconds:.2f} an edit), peak {cost.peak_mb:.0f} MB, patch {size_mb(kept):.0f} MB"
            )
    after = score_cases(lm, scored, Measures(generation=False))
    records = [
        {"case_id": case.case_id, "target_new": case.edit.target_new, "base": was, "after": now}
        for case, was, now in zip(scored, base, after, strict=True)
    ]
    metrics = {**summarise(records), **perplexity_metrics(before, window_nlls(lm, text))}
    for name in ("ES", "PS", "NS", "token_accuracy", "perplexity"):
        found = metrics[name]
        say(f"{name} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n {found.n}, unedited {found.base:.3f}")
    what = {"verb": "scale", "method": options.method, "config": config, "n": len(cases), "batch_size": step}
    model = model_record(lm, fingerprint=base_fingerprint(lm))
    cost = meter.cost(len(cases))
    say(f"all: {cost.cpu_seconds:.0f} CPU s, {cost.wall_seconds:.0f} s, peak {cost.peak_mb:.0f} MB")
    write_metrics(options.out, Measured(what=what, model=model, metrics=metrics, cost=cost, versions=versions()))


class Log:
    """Prints lines, and adds them to a file that a restarted run continues."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.monotonic()

    def __call__(self, line: str) -> None:
        """One line, with the seconds since this run began."""
        line = f"{time.monotonic() - self.began:7.0f} s  {line}"
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@contextmanager
def heartbeat(say: Log, values: Path) -> Iterator[None]:
    """Within the block, a line now and then: how much is kept of the unfinished step, and the memory."""
    over = threading.Event()

    def beat() -> None:
        with CostMeter() as meter:
            while not over.wait(HEARTBEAT):
                cost, kept = meter.cost(), len(list(values.glob("values_*.safetensors")))
                say(f"  ... {kept} chunks of values kept, {cost.cpu_seconds:.0f} CPU s, peak {cost.peak_mb:.0f} MB")

    watcher = threading.Thread(target=beat, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def size_mb(folder: Path) -> float:
    """What a folder takes on disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
