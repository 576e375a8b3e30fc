"""``errata locate``: what a trace leaves behind, and how bad input is refused."""

from __future__ import annotations

import json

import pytest

import errata
from errata.cli import main
from errata.evaluation.schema import read_metrics

QUICK = ("--samples", "2", "--window", "2")
PROMPT = ("--prompt", "{} is the capital of", "--subject", "Rome")


@pytest.fixture
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(capsys, work):
    """Run a command line: its exit code, and what it wrote."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main.run([str(argument) for argument in arguments])
        return leaving.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(call, work):
    """Run a command line that must be refused; gives the sentence."""

    def run(*arguments, leaves=()):
        for extra in ((), ("--json",)):
            code, out, err = call(*arguments, "--out", "run", *extra)
            assert code == 2, err
            assert err.startswith("errata: ")
            assert err.count("\n") == 1
            assert err.endswith(".\n")
            assert "Traceback" not in err
            sentence = err.removeprefix("errata: ").strip()
            assert (json.loads(out)["error"] == sentence) if extra else out == ""
            assert sorted(path.name for path in work.iterdir()) == sorted(leaves)
        return sentence

    return run


def test_a_trace_of_one_prompt_is_a_folder_of_its_own(call, work, model):
    code, out, err = call(
        "locate", "trace", "-m", model, *PROMPT, *QUICK, "--kinds", "state,mlp,severed-mlp", "--out", "run"
    )
    assert (code, err) == (0, "")
    assert "indirect effect" in out
    names = {"metrics.json", "records.jsonl", "trace.json", "trace.png", "trace.svg", "index.html"}
    assert {path.name for path in (work / "run").iterdir()} == names
    measured = read_metrics(work / "run")
    assert measured.what["verb"] == "locate trace"
    assert measured.what["kinds"] == ["state", "mlp", "severed-mlp"]
    assert {"clean", "corrupted", "total_effect", "state_last_token"} <= set(measured.metrics)
    everything = json.loads((work / "run" / "trace.json").read_text())
    (fact,) = everything["facts"]
    assert len(fact["scores"]["state"]) == len(fact["tokens"])
    assert {len(row) for row in fact["scores"]["mlp"]} == {4}
    record = json.loads((work / "run" / "records.jsonl").read_text())
    assert record["subject"] == "Rome"
    assert record["clean"] == pytest.approx(measured.metrics["clean"].value)
    page = (work / "run" / "index.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert (work / "run" / "trace.png").read_bytes()[:4] == b"\x89PNG"
    assert b"Rome" in (work / "run" / "trace.svg").read_bytes() or b"<svg" in (work / "run" / "trace.svg").read_bytes()


def test_a_trace_of_many_facts_counts_what_is_left_out(call, work, model):
    lm = errata.load(model, device="cpu")
    lines = [{"prompt": "{} is the capital of", "subject": s} for s in ("Rome", "Maria Gonzalez", "Orla")]
    lines.append({"prompt": "{} is the capital of", "subject": "Rome", "answer": "newspaper", "fact_id": "wrong"})
    (work / "facts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    code, out, err = call(
        "locate", "trace", "-m", model, "--facts", "facts.jsonl", *QUICK, "--kinds", "state", "--out", "run", "--json"
    )
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["what"]["left_out"] == {"not predicted by the model": 1}
    assert told["what"]["n"] == 3
    assert told["model"]["fingerprint"] == lm.fingerprint()
    assert told["metrics"]["state_last_subject_token"]["n"] == 3
    assert len((work / "run" / "records.jsonl").read_text().splitlines()) == 3


def test_bias_is_traced_over_the_occupations_that_come_with_errata(call, work, model):
    code, out, err = call(
        "locate", "bias", "-m", model, *QUICK, "--limit", "3", "--kinds", "state", "--out", "run", "--quiet"
    )
    assert (code, out.strip(), err) == (0, "run", "")
    measured = read_metrics(work / "run")
    assert measured.what["measure"] == "probability-difference"
    assert measured.metrics["clean"].value > 0
    assert (work / "run" / "bias.png").is_file()
    code, *_ = call("locate", "bias", "-m", model, *QUICK, "--prompt", "The {} said that", "--subject", "nurse",
                    "--kinds", "attention", "--out", "one", "--json")  # fmt: skip
    assert code == 0


@pytest.mark.parametrize("verb", ["trace", "bias"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--prompt", "It is located in", "--subject", "Rome"), "missing from the prompt"),
        (("--prompt", "{} is in"), "no --subject"),
        ((*PROMPT, "--limit", "3"), "not both"),
        (("--limit", "0"), "limit 0"),
        ((*PROMPT, "--kinds", "state,mpl"), "no kind 'mpl'"),
        ((*PROMPT, "--kinds", ""), "no kind ''"),
        ((*PROMPT, "--window", "0"), "window of 0"),
        ((*PROMPT, "--window", "3", "--before", "3"), "3 layers below"),
        ((*PROMPT, "--samples", "0"), "0 corrupted runs"),
        ((*PROMPT, "--noise", "loud"), "not a level"),
        ((*PROMPT, "--noise=-1"), "not a number from 0 up"),
        (("--facts", "nowhere.json"), "no file nowhere.json"),
        (("--facts", "nowhere.pkl"), "not known"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(refused, verb, flags, words):
    assert words in refused("locate", verb, "-m", "./no-such-model", *flags)


def test_an_answer_that_the_model_does_not_give(refused, model):
    assert "does not predict" in refused("locate", "trace", "-m", model, *PROMPT, "--answer", "newspaper")


def test_a_subject_that_nothing_can_replace(refused, model):
    said = refused("locate", "trace", "-m", model, *PROMPT, "--corruption", "replacement")
    assert "as many tokens" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no fact"),
        ("[]", "holds no fact"),
        ('[{"prompt": "{} is", "subject": "Rome", "attribute": ""}]', "record 1"),
        ('[{"prompt": "It is", "subject": "Rome", "attribute": "x"}]', "missing from the prompt"),
        ('[{"prompt": "{} is", "attribute": "x"}]', "'subject'"),
        ("[1]", "not a JSON object"),
    ],
)
def test_a_file_of_facts_names_its_fault(refused, work, content, words):
    (work / "facts.json").write_text(content)
    assert words in refused("locate", "trace", "-m", "./no-such-model", "--facts", "facts.json", leaves=["facts.json"])


def test_a_bias_prompt_without_two_continuations(refused, work, model):
    (work / "facts.json").write_text('[{"prompt": "{} is", "subject": "Rome", "answer": "x"}]')
    assert "no two continuations" in refused(
        "locate", "bias", "-m", model, "--facts", "facts.json", leaves=["facts.json"]
    )


def test_a_folder_that_is_not_empty(refused, work, model):
    (work / "run").mkdir()
    (work / "run" / "mine.txt").write_text("")
    assert "not empty" in refused("locate", "trace", "-m", model, *PROMPT, leaves=["run"])
    assert [path.name for path in (work / "run").iterdir()] == ["mine.txt"]
