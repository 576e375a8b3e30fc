"""A long edit on the real model, killed again and again, gives the patch of one that was left alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import errata
from errata.bench.evaluate import without_contradictions
from errata.lm.load import EMBEDDED, EMBEDDED_INSTALL, EMBEDDED_PACKAGE
from errata.patch import Patch

COUNTERFACT = Path(__file__).parents[2] / "shared" / "data" / "counterfact" / "counterfact_train_short.json"
EDITS, KILLS, SEED = 300, 5, 7
# Short optimisations: what is at stake is that the same work is done, not how well.
CONFIG = {"steps": 4, "contexts": 1, "corpus": "identity"}
PROGRAM = """
import sys
import errata
model, file, work, out = sys.argv[1:]
patch = errata.edit(errata.load(model), errata.read_edits(file), method="memit", config={config}, resume=work)
patch.save_pretrained(out)
"""


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.skipif(find_spec(EMBEDDED_PACKAGE) is None, reason=f"the embedded model is not here: {EMBEDDED_INSTALL}")
@pytest.mark.skipif(not COUNTERFACT.is_file(), reason="CounterFact is not beside the project")
def test_three_hundred_edits_killed_five_times(tmp_path):
    cases, _ = without_contradictions(errata.read_cases(COUNTERFACT, limit=2 * EDITS))
    file = tmp_path / "edits.jsonl"
    lines = [json.dumps(case.edit.to_dict()) for case in cases[:EDITS]]
    file.write_text("\n".join(lines), encoding="utf-8")
    program = PROGRAM.replace("{config}", repr(CONFIG))

    def run(name, work):
        arguments = [EMBEDDED, str(file), str(tmp_path / work), str(tmp_path / name)]
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    alone = run("alone", "work-alone")
    said, _ = alone.communicate()
    assert alone.returncode == 0, said

    work, chance, kept = tmp_path / "work", random.Random(SEED), []
    for kill in range(KILLS):
        going = run("killed", "work")
        while len(list(work.glob("values_*"))) < kill and going.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 1.0))
        going.kill()
        going.wait()
        kept.append(len(list(work.glob("values_*"))))
    assert not (tmp_path / "killed").exists()  # nothing half-written
    assert kept[-1] >= KILLS - 1  # each time it went on from where it had been
    last = run("killed", "work")
    said, _ = last.communicate()
    assert last.returncode == 0, said
    assert Patch.from_pretrained(tmp_path / "killed").digest == Patch.from_pretrained(tmp_path / "alone").digest
