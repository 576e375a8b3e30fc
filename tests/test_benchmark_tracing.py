"""The benchmark of tracing: Errata's way gives what the published way gives, for fewer operations."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from errata.lm import load
from errata.records import Fact
from errata.testing import tiny

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "tracing.py"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_both_ways_say_the_same(family):
    spec = importlib.util.spec_from_file_location("benchmark_tracing", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    lm = load(tiny(family, layers=8), device="cpu")
    before = lm.fingerprint()
    found = benchmark.measure(lm, Fact(prompt="{} is the capital of", subject="Maria Gonzalez"), 12)
    assert lm.fingerprint() == before
    assert found["largest_difference"] < 1e-5
    assert found["flops_ratio"] > 3
    assert found["time_ratio"] > 0
