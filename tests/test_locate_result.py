"""What a trace found: roles, averages, pictures, files; and the facts that it starts from."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import errata
from errata.datasets import occupation_facts, read_facts, starter_facts
from errata.errors import ConfigError, DatasetError, RequestError
from errata.evaluation.schema import CostMeter
from errata.locate.result import picture
from errata.locate.roles import Role, positions_by_role
from errata.locate.trace_result import FactTrace, Trace
from errata.locate.tracing import Kind, TraceOptions
from errata.records import Edit, Fact
from errata.testing import tiny


@pytest.mark.parametrize(
    ("tokens", "subject", "expected"),
    [
        (9, (1, 5), ([1], [2, 3], [4], [5], [6, 7], [8])),
        (6, (0, 1), ([], [], [0], [1], [2, 3, 4], [5])),
        (4, (0, 2), ([0], [], [1], [2], [], [3])),
        (3, (0, 2), ([0], [], [1], [], [], [2])),
        (4, (1, 4), ([1], [2], [], [], [], [3])),
        (2, (1, 2), ([], [], [], [], [], [1])),
    ],
)
def test_roles(tokens, subject, expected):
    found = positions_by_role(tokens, subject)
    assert tuple(list(found[role]) for role in Role) == expected
    every = [position for positions in found.values() for position in positions]
    assert sorted(every) == list(range(subject[0], tokens))  # each from the subject on has one role


def made(scores, corrupted=0.1, tokens=("The", "Eif", "fel", "$tower$", "is", "in", "the"), subject=(1, 4), name="a"):
    fact = Fact(prompt="The {} is in the", subject="Eiffel $tower$", answer="city", fact_id=name)
    return FactTrace(fact, tokens, subject, 0.9, corrupted, {Kind.STATE: scores})


def traced(*facts, kinds=("state",)):
    return Trace(3, TraceOptions(kinds=kinds), facts, {"not predicted by the model": ["x", "y"]}, 0.5)


def test_averages_are_over_the_facts_that_have_a_role_with_bands():
    first, second = np.arange(21.0).reshape(7, 3), np.ones((7, 3))
    short = made(np.full((7, 3), 3.0), subject=(3, 4), name="c")
    averages = traced(made(first), made(second, name="b"), short).average(Kind.STATE)
    middle, last = averages[Role.MIDDLE_SUBJECT], averages[Role.LAST]
    assert middle.n == 2  # a subject of one token has no middle
    np.testing.assert_allclose(middle.mean, (first[2] + second[2]) / 2 - 0.1)
    rows = np.stack([first[6], second[6], np.full(3, 3.0)]) - 0.1
    np.testing.assert_allclose(last.mean, rows.mean(0))
    np.testing.assert_allclose(last.high - last.mean, 1.96 * rows.std(0, ddof=1) / 3**0.5)


def test_metrics_are_the_largest_averages_with_their_layers():
    first, second = np.arange(21.0).reshape(7, 3), np.ones((7, 3))
    metrics = traced(made(first), made(second, name="b")).metrics()
    assert metrics["total_effect"].value == pytest.approx(0.8)
    assert metrics["state_last_token"].value == pytest.approx((20 + 1) / 2 - 0.1)
    assert metrics["state_last_token_layer"].value == 2
    assert metrics["state_largest"].value == pytest.approx((20 + 1) / 2)
    assert metrics["state_last_token"].low <= metrics["state_last_token"].value <= metrics["state_last_token"].high


def test_one_fact_has_no_interval():
    metrics = traced(made(np.arange(21.0).reshape(7, 3))).metrics()
    assert metrics["state_last_token"].value is not None
    assert {(metric.low, metric.high) for metric in metrics.values()} == {(None, None)}


def test_pictures_keep_odd_characters_and_touch_no_global_state():
    program = "import sys, errata.locate.trace_plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    one = traced(made(np.arange(21.0).reshape(7, 3))).plot()
    labels = [label.get_text() for label in one.axes[0].get_yticklabels()]
    assert labels == ["The", "Eif*", "fel*", "$tower$*", "is", "in", "the"]
    assert any(axis.get_ylabel() == "P(city)" for axis in one.axes)
    many = traced(made(np.ones((7, 3))), made(np.zeros((7, 3)), name="b")).plot()
    assert [label.get_text() for label in many.axes[0].get_yticklabels()] == [role.value for role in Role]
    again = traced(made(np.arange(21.0).reshape(7, 3))).plot()
    assert picture(one, "svg") == picture(again, "svg")
    assert picture(many, "png")[:4] == b"\x89PNG"


def test_a_saved_result_is_whole_and_finite(tmp_path):
    lm = errata.load(tiny("gpt2"), device="cpu")
    with CostMeter() as meter:
        found = errata.locate.trace(
            lm, [Fact(prompt="{} is", subject=s) for s in ("Rome", "Maria")], kinds=tuple(Kind), samples=2
        )
    measured = errata.locate.save(found, tmp_path / "run", lm=lm, cost=meter.cost())
    assert measured.metrics == found.metrics()
    content = json.loads((tmp_path / "run" / "trace.json").read_text(), parse_constant=lambda _: pytest.fail("NaN"))
    assert content["facts"][0]["scores"]["severed-mlp"][-1][0] is None
    assert set(content["averages"]["state"]) <= {role.key for role in Role}
    with pytest.raises(errata.ErrataError, match="not empty"):
        errata.locate.save(found, tmp_path / "run", lm=lm, cost=meter.cost())


# Facts.


def test_facts_as_they_are_published(tmp_path):
    records = [
        {"known_id": 7, "subject": "Vinson Massif", "attribute": "Antarctica", "template": "{} is located in",
         "prompt": "Vinson Massif is located in the continent of", "prediction": " of Antarctica."},
        {"known_id": 8, "subject": "Beats Music", "attribute": "Apple", "prompt": "Beats Music is owned by"},
    ]  # fmt: skip
    path = tmp_path / "known.json"
    path.write_text(json.dumps(records))
    first, second = read_facts(path)
    wanted = Fact(prompt="{} is located in the continent of", subject="Vinson Massif", answer="Antarctica", fact_id="7")
    assert first == wanted
    assert second.text == "Beats Music is owned by"
    assert read_facts(path, limit=1) == [first]
    with pytest.raises(ConfigError):
        read_facts(path, limit=0)


def test_facts_of_cases_are_what_is_true_before_the_edit(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text('[{"case_id": "x", "prompt": "{} is", "subject": "A", "target_new": "b", "target_true": "c"}]')
    assert read_facts(path) == [Fact(prompt="{} is", subject="A", answer="c", fact_id="x")]
    (tmp_path / "cases.csv").write_text("prompt,subject,target_new\n{} is,A,b\n")
    assert read_facts(tmp_path / "cases.csv")[0].answer is None
    (tmp_path / "bad.json").write_text('[{"x": 1}]')
    with pytest.raises(DatasetError):
        read_facts(tmp_path / "bad.json")


def test_the_facts_that_come_with_errata():
    assert len(starter_facts()) == len(errata.starter_cases())
    assert all(fact.answer for fact in starter_facts())
    occupations = occupation_facts()
    assert {(fact.answer, fact.other) for fact in occupations} == {("he", "she")}
    assert len({fact.fact_id for fact in occupations}) == len(occupations) == 72


def test_a_fact_is_checked():
    assert Fact(prompt="Rome is in ", subject="Rome").prompt == "{} is in"
    assert Fact.of(Edit(prompt="{} is", subject="A", target_new="b", target_true="c")).answer == "c"
    assert Fact(**Fact(prompt="{} is", subject="A", answer=" b ").to_dict()).answer == "b"
    for wrong in (
        {"prompt": "{} is", "subject": " "},
        {"prompt": "{} {}", "subject": "A"},
        {"prompt": "is", "subject": "A"},
        {"prompt": "{} is", "subject": "A", "answer": ""},
        {"prompt": "{} is", "subject": "A", "other": 3},
    ):
        with pytest.raises(RequestError):
            Fact(**wrong)
