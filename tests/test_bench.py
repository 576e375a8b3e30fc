"""The three protocols on a tiny model: what they leave, that they resume, and that the model comes back."""

from __future__ import annotations

import json

import pytest

import errata
from errata.bench import evaluate
from errata.bench import protocols as module
from errata.bench.evaluate import join_phases, without_contradictions
from errata.errors import ConfigError, DatasetError, RequestError
from errata.evaluation.editing import Measures, score_cases
from errata.evaluation.schema import read_metrics
from errata.evaluation.summary import summarise
from errata.lm import load, score
from errata.patch import applied_patches
from errata.testing import tiny

QUICK = {"corpus": "identity", "steps": 3, "contexts": 1}
OPTIONS = {"config": QUICK, "fluency_cases": 1}


@pytest.fixture(scope="module")
def lm():
    return load(tiny("llama"))


@pytest.fixture(scope="module")
def cases():
    return errata.starter_cases(4)


def lines(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("protocol", "method"), [("single", "r-rome"), ("batch", "memit"), ("sequential", "r-rome")])
def test_a_protocol_leaves_numbers_that_follow_from_its_records(lm, cases, tmp_path, protocol, method):
    before = lm.fingerprint()
    measured = evaluate(lm, cases, method=method, protocol=protocol, out=tmp_path / "run", **OPTIONS)
    assert lm.fingerprint() == before
    assert applied_patches(lm) == ()

    written = read_metrics(tmp_path / "run")
    assert written == measured
    assert {"ES", "PS", "NS", "S", "EM", "strict_success", "unchanged_neighbours", "perplexity", "GE"} <= set(
        written.metrics
    )
    assert written.what["protocol"] == protocol
    assert written.model["fingerprint"] == before
    again = summarise(join_phases(lines(tmp_path / "run")))
    for name, metric in again.items():
        assert written.metrics[name] == metric or name.startswith("perplexity")
    assert written.metrics["ES"].n == len(cases)
    assert written.metrics["unchanged_neighbours"].base == 1.0


@pytest.mark.parametrize(("protocol", "method"), [("single", "r-rome"), ("batch", "memit"), ("sequential", "memit")])
def test_a_killed_run_resumes_to_the_same_numbers(lm, cases, tmp_path, monkeypatch, protocol, method):
    options = {**OPTIONS, "method": method, "protocol": protocol}
    if protocol == "sequential":
        options["batch_size"] = 2
    whole = evaluate(lm, cases, out=tmp_path / "whole", **options)

    class Killed(BaseException):
        pass

    allowed = 6 if protocol == "single" else 5  # all base lines and the first of the edited ones
    write = module.RecordWriter.write

    def dying(self, record):
        if len(self.done) >= allowed:
            raise Killed
        write(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(module.RecordWriter, "write", dying)
        with pytest.raises(Killed):
            evaluate(lm, cases, out=tmp_path / "torn", **options)
    assert len(lines(tmp_path / "torn")) == allowed
    assert not (tmp_path / "torn" / "metrics.json").exists()
    assert applied_patches(lm) == ()

    resumed = evaluate(lm, cases, out=tmp_path / "torn", **options)
    for name, metric in whole.metrics.items():
        assert resumed.metrics[name].value == pytest.approx(metric.value, rel=1e-5, abs=1e-6), name


def test_single_edits_scored_together_are_those_scored_one_by_one(lm, cases, tmp_path, monkeypatch):
    options = {**OPTIONS, "method": "r-rome", "fluency_cases": 2}
    together = evaluate(lm, cases, out=tmp_path / "together", **options)
    seen = []
    monkeypatch.setattr(module, "groups", lambda lm, patches: [seen.append(i) or [i] for i in range(len(patches))])
    alone = evaluate(lm, cases, out=tmp_path / "alone", **options)
    assert seen == [0, 1, 2, 3]
    for name, metric in alone.metrics.items():
        assert together.metrics[name].value == pytest.approx(metric.value, rel=1e-4, abs=1e-5), name
    texts = [
        [row["text"] for line in lines(tmp_path / run) for row in line["said"].get("fluency", [])]
        for run in ("together", "alone")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2 * sum(len(case.generation_prompts) for case in cases[:2])


def test_a_folder_of_another_run_is_refused(lm, cases, tmp_path):
    evaluate(lm, cases[:1], method="none", out=tmp_path / "run", generation=False)
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        evaluate(lm, cases[1:2], method="none", out=tmp_path / "run", generation=False)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="holds no run"):
        evaluate(lm, cases[:1], method="none", out=tmp_path / "else", generation=False)


def test_the_unedited_model_is_its_own_base(lm, cases, tmp_path):
    metrics = evaluate(lm, cases, method="none", out=tmp_path / "run", fluency_cases=0).metrics
    assert {"ES", "NS", "perplexity"} <= set(metrics)
    assert all(metric.value == metric.base for metric in metrics.values())


def test_an_edit_that_cannot_be_made_counts_as_failed(lm, cases, tmp_path, monkeypatch):
    method = errata.methods.get_method("r-rome")
    solve = type(method).solve

    def refusing(self, lm, edits, config):
        if edits[0] == cases[1].edit:
            raise RequestError("This one cannot be made.")
        return solve(self, lm, edits, config)

    def together(self, lm, edits, config):
        raise RequestError("One of these cannot be made.")

    monkeypatch.setattr(type(method), "solve", refusing)
    monkeypatch.setattr(type(method), "solve_each", together)
    measured = evaluate(lm, cases, method="r-rome", out=tmp_path / "run", **OPTIONS)
    assert measured.metrics["ES"].n == len(cases)
    failed = [line for line in lines(tmp_path / "run") if "error" in line]
    assert [line["case_id"] for line in failed] == [cases[1].case_id]
    base = next(x for x in lines(tmp_path / "run") if x["case_id"] == cases[1].case_id and x["phase"] == "base")
    assert failed[0]["said"] == base["said"]


def test_cases_that_contradict_an_earlier_one_are_left_out_and_named(lm, cases, tmp_path):
    edit = cases[0].edit
    other = errata.EditCase(
        case_id="contrary",
        edit=errata.Edit(prompt=edit.prompt, subject=edit.subject, target_new="Zurich", target_true=edit.target_true),
    )
    kept, left_out = without_contradictions([cases[0], other, cases[1]])
    assert [case.case_id for case in kept] == [cases[0].case_id, cases[1].case_id]
    assert left_out == ["contrary"]
    measured = evaluate(
        lm,
        [cases[0], other, cases[1]],
        method="memit",
        protocol="batch",
        out=tmp_path / "run",
        generation=False,
        config=QUICK,
    )
    assert measured.what["left_out"] == ["contrary"]
    assert measured.metrics["ES"].n == 2


def test_scores_in_a_batch_are_those_of_each_prompt_alone(lm, cases):
    (record,) = score_cases(lm, cases[:1], Measures(generation=False))
    edit = cases[0].edit
    for row in record["rewrite"] + record["paraphrases"]:
        for name, target in (("new", edit.target_new), ("true", edit.target_true)):
            assert row[name] == pytest.approx(score(lm, [(row["prompt"], target)])[0].log_probability, abs=1e-4)
    for row, probe in zip(record["neighbours"], cases[0].neighbours, strict=True):
        assert row["true"] == pytest.approx(score(lm, [(probe.prompt, probe.answers[0])])[0].log_probability, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"protocol": "parallel"}, ConfigError, "no protocol 'parallel'"),
        ({"batch_size": 2}, ConfigError, "batch_size"),
        ({"method": "r-roam"}, ConfigError, "did you mean 'r-rome'"),
        ({"method": "none", "config": {"steps": 3}}, ConfigError, "edits nothing"),
        ({"config": {"stepz": 3}}, ConfigError, "no option 'stepz'"),
        ({"cases": []}, DatasetError, "no case"),
    ],
)
def test_a_bad_request_is_one_sentence(lm, tmp_path, arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        evaluate(lm, **{"cases": "starter", "out": tmp_path / "run", "limit": 1, **arguments})
    assert str(caught.value).count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_the_unedited_models_scores_are_taken_over_from_an_earlier_run(lm, cases, tmp_path, monkeypatch):
    first = evaluate(lm, cases, method="none", out=tmp_path / "none", fluency_cases=1)
    alone = evaluate(lm, cases[:3], method="memit", protocol="batch", out=tmp_path / "alone", **OPTIONS)
    scored = []
    original = module.score_cases
    monkeypatch.setattr(module, "score_cases", lambda *a, **k: scored.append(1) or original(*a, **k))
    options = {**OPTIONS, "base": tmp_path / "none"}
    taken = evaluate(lm, cases[:3], method="memit", protocol="batch", out=tmp_path / "taken", **options)
    assert len(scored) <= 2  # those of the edited model
    assert taken.metrics["ES"] == alone.metrics["ES"]
    assert taken.metrics["unchanged_neighbours"] == alone.metrics["unchanged_neighbours"]
    assert first.metrics["ES"].n == len(cases)


@pytest.mark.parametrize("change", [{"generation": False}, {"seed": 1}, {"fluency_cases": 0}])
def test_a_base_that_was_scored_otherwise_is_refused(lm, cases, tmp_path, change):
    evaluate(lm, cases[:1], method="none", out=tmp_path / "none", fluency_cases=1)
    with pytest.raises(ConfigError, match="does not serve"):
        evaluate(lm, cases[:1], method="r-rome", base=tmp_path / "none", **{**OPTIONS, **change})


def test_a_base_of_another_model_or_of_none_is_refused(lm, cases, tmp_path):
    evaluate(lm, cases[:1], method="none", out=tmp_path / "none", fluency_cases=1)
    with pytest.raises(ConfigError, match="another 'model'"):
        evaluate(load(tiny("gpt2")), cases[:1], method="r-rome", base=tmp_path / "none", **OPTIONS)
    with pytest.raises(ConfigError, match="no finished run"):
        evaluate(lm, cases[:1], method="r-rome", base=tmp_path, **OPTIONS)


def test_cases_of_several_edits_are_left_out_where_any_of_them_contradicts():
    def case(name, subject, target, *also):
        edits = [errata.Edit(prompt="{} lives in", subject=s, target_new=t) for s, t in ((subject, target), *also)]
        return errata.EditCase(case_id=name, edit=edits[0], also=tuple(edits[1:]))

    cases = [
        case("a", "Ann", "Rome", ("Bob", "Oslo")), case("b", "Cy", "Bern", ("Bob", "Lima")), case("c", "Cy", "Riga")
    ]  # fmt: skip
    kept, left_out = without_contradictions(cases)
    assert [c.case_id for c in kept] == ["a", "c"]
    assert left_out == ["b"]


def test_options_of_a_reader_are_for_files(lm, cases):
    with pytest.raises(ConfigError, match="for a file of cases"):
        evaluate(lm, cases, method="none", reading={"language": "de"})


def test_a_finished_sequence_is_replaced_by_the_methods_last_word(lm, cases, tmp_path, monkeypatch):
    from errata.methods.locate_then_edit.memit import Memit

    seen = []

    def finish(self, lm, patches, config):
        seen.append((len(patches), len(applied_patches(lm))))
        return patches[0]

    monkeypatch.setattr(Memit, "finish", finish)
    was = lm.fingerprint()
    options = {**OPTIONS, "generation": False, "config": {**QUICK, "layers": (1,)}}
    run = evaluate(lm, cases, method="memit", protocol="sequential", batch_size=2, out=tmp_path / "run", **options)
    assert seen == [(2, 2)]
    assert lm.fingerprint() == was
    monkeypatch.undo()
    whole = evaluate(lm, cases, method="memit", protocol="sequential", batch_size=2, **options)
    assert run.metrics["EM"] != whole.metrics["EM"]
