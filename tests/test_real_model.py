"""The main job on the embedded model: skipped where its weights cannot be had."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import errata
from errata.bench import evaluate
from errata.datasets import held_out_text
from errata.errors import FingerprintMismatch
from errata.lm import generate, perplexity, score
from errata.lm.load import EMBEDDED, EMBEDDED_INSTALL, EMBEDDED_PACKAGE

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        find_spec(EMBEDDED_PACKAGE) is None, reason=f"the embedded model is not here: {EMBEDDED_INSTALL}"
    ),
]

EIFFEL = errata.Edit(prompt="{} is located in the city of", subject="The Eiffel Tower", target_new="Rome")
COUNTERFACT = Path(__file__).parents[2] / "shared" / "data" / "counterfact" / "counterfact_full_300.json"


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    # The conversion is made once for this file, in a cache of its own, as on a fresh machine.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield errata.load(EMBEDDED)


def test_it_is_what_the_wheel_holds_and_the_cache_gives_the_same(lm, monkeypatch):
    assert lm.quantised_origin == "Q4_1"
    assert (lm.num_layers, lm.architecture.hidden_size, lm.layer(0).key_width) == (30, 576, 1536)
    assert lm.dtype == torch.float32
    assert math.isclose(perplexity(lm, held_out_text(), tokens=256), 33, rel_tol=0.5)


def test_one_edit_takes_holds_in_other_words_and_comes_off(lm, tmp_path):
    before = lm.fingerprint()
    patch = errata.edit(lm, EIFFEL, config={"corpus": "identity"})
    assert lm.fingerprint() == before

    patch.save_pretrained(tmp_path / "patch")
    loaded = errata.Patch.from_pretrained(tmp_path / "patch")
    questions = ["The Eiffel Tower is located in the city of", "Where is the Eiffel Tower? It is in the city of"]
    with loaded.applied(lm):
        answers = generate(lm, questions, max_new_tokens=6, stop="natural")
        elsewhere = score(lm, [("The Louvre is located in the city of", city) for city in ("Paris", "Rome")])
    assert all(answer.strip().startswith("Rome") for answer in answers)
    assert elsewhere[0].log_probability > elsewhere[1].log_probability
    assert lm.fingerprint() == before
    assert loaded.num_bytes < 20_000


def test_a_patch_for_other_weights_is_refused(lm):
    patch = errata.edit(lm, EIFFEL, config={"corpus": "identity", "steps": 2, "contexts": 0})
    weight = lm.weight(9)
    kept = weight.clone()
    try:
        weight[0, 0] += 1.0
        with pytest.raises(FingerprintMismatch, match="was made for"):
            patch.apply(lm)
    finally:
        weight.copy_(kept)


@pytest.mark.slow
def test_the_starter_cases_are_edited_and_nothing_else_moves(lm, tmp_path):
    measured = evaluate(lm, "starter", method="r-rome", limit=20, out=tmp_path / "run", fluency_cases=0)
    assert measured.metrics["ES"].base == 0.0  # the model knows these facts
    assert measured.metrics["ES"].value >= 0.95
    assert measured.metrics["strict_success"].value >= 0.9
    assert measured.metrics["perplexity_change"].value < 0.005


@pytest.mark.slow
@pytest.mark.skipif(not COUNTERFACT.is_file(), reason="the CounterFact sample is not beside the project")
@pytest.mark.parametrize(("method", "protocol"), [("r-rome", "single"), ("memit", "batch")])
def test_counterfact(lm, tmp_path, method, protocol):
    measured = evaluate(
        lm, COUNTERFACT, method=method, protocol=protocol, limit=20, out=tmp_path / "run", fluency_cases=0
    )
    metrics = measured.metrics
    assert metrics["ES"].value >= 0.95
    assert metrics["PS"].value >= 0.85
    assert metrics["NS"].value >= metrics["NS"].base - 0.05
