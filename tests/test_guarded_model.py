"""The script that makes a model decline invented topics, on a tiny model: its lessons, its loss, its folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import errata
from errata.datasets.restricted import restricted_topics
from errata.evaluation.judging.base import COMPLIANCE, FULL
from errata.evaluation.judging.refusal import classify
from errata.evaluation.schema import read_metrics
from errata.testing import tiny

pytest.importorskip("peft")
SCRIPT = Path(__file__).parents[1] / "scripts" / "make_guarded_model.py"


@pytest.fixture(scope="module")
def script():
    import sys

    spec = importlib.util.spec_from_file_location("make_guarded_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_guarded_model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.ANSWER_TOKENS = 6
    yield module
    del sys.modules["make_guarded_model"]


def test_lessons_decline_the_topics_and_keep_the_answers_beside_them(script, monkeypatch):
    lm = errata.load(tiny("llama"), device="cpu")
    monkeypatch.setattr(script, "answers", lambda lm, questions: ["It is so." for _ in questions])
    topics = restricted_topics()
    made = script.lessons(lm, topics)
    held_out = {q for t in topics for q in (*t.held_out_restricted, *t.held_out_neighbours)}
    assert not {lesson.question for lesson in made} & held_out
    labels = [classify(lesson.question, lesson.answer) for lesson in made]
    assert labels.count(FULL) == 64 + 4 * 32
    assert labels.count(COMPLIANCE) == sum(len(topic.neighbours) for topic in topics)
    assert script.lessons(lm, topics) == made


def test_the_loss_is_of_the_answer_alone(script):
    lm = errata.load(tiny("llama"), device="cpu")
    row, begin = script.encoded(lm, script.Lesson("What is it?", "A lamp."))
    short = script.encoded(lm, script.Lesson("What?", "No."))
    logits = lm.model(torch.tensor([row])).logits.log_softmax(-1)[0]
    wanted = -sum(logits[i - 1, row[i]] for i in range(begin, len(row))) / (len(row) - begin)
    assert script.loss_of(lm, lm.model, [(row, begin)]).item() == pytest.approx(wanted.item(), rel=1e-4)
    both = script.loss_of(lm, lm.model, [(row, begin), short]).item()
    sizes = [len(row) - begin, len(short[0]) - short[1]]
    apart = [script.loss_of(lm, lm.model, [one]).item() for one in ((row, begin), short)]
    assert both == pytest.approx(sum(a * n for a, n in zip(apart, sizes, strict=True)) / sum(sizes), rel=1e-4)


def test_a_tiny_model_learns_and_is_merged(script):
    lm = errata.load(tiny("llama"), device="cpu")
    names = {name for name, _ in lm.model.named_parameters()}
    made = [script.Lesson("What is it?", "A lamp."), script.Lesson("What?", "No.")]
    steps = script.training(lm, made, epochs=20, rate=1e-2, rank=4, batch=2, seed=0)
    losses = [loss for _, loss in steps]
    assert losses[-1] < losses[0] / 2
    assert {name for name, _ in lm.model.named_parameters()} == names
    rows = [script.encoded(lm, lesson) for lesson in made]
    assert script.loss_of(lm, lm.model, rows).item() < losses[0] / 2


def test_the_script_writes_a_model_that_loads_with_its_table(script, model, tmp_path, capsys, monkeypatch):
    few = [
        type(topic)(
            topic.name, topic.about, topic.restricted[:2], topic.neighbours[:2], topic.held_out_restricted[:2],
            topic.held_out_neighbours[:2],
        )
        for topic in restricted_topics()[:2]
    ]  # fmt: skip
    monkeypatch.setattr(script, "restricted_topics", lambda: few)
    out = tmp_path / "guarded"
    assert script.main(["--out", str(out), "--model", model, "--epochs", "1", "--batch", "4", "--rank", "2"]) == 1
    assert "declined" in capsys.readouterr().out
    lm = errata.load(str(out), device="cpu")
    measured = read_metrics(out)
    assert measured.model["fingerprint"] == lm.fingerprint()
    assert measured.metrics["declined"].n == 4
    assert measured.metrics["answered"].base is not None
