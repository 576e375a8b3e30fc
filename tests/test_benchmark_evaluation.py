"""The evaluation's benchmark: Errata's way gives what one prompt at a time gives, on cases that each have a patch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import errata
from errata.lm import load
from errata.testing import tiny

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "evaluation.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_evaluation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_both_ways_say_the_same(benchmark, monkeypatch, family):
    monkeypatch.setattr(benchmark, "CHUNK", 2)
    monkeypatch.setattr(benchmark, "SINGLE_TOKENS", 40)
    monkeypatch.setattr(benchmark, "WINDOW", 25)
    lm = load(tiny(family))
    before = lm.fingerprint()
    found = benchmark.measure(lm, errata.starter_cases(3))
    assert lm.fingerprint() == before
    assert found["largest_difference"] < 3e-4
    assert found["same_answers"] == 1.0
    assert found["largest_relative_perplexity_difference"] < 1e-4
    assert all(found[name] > 0 for name in found if "ratio" in name and name != "evaluation_ratio_generation")
