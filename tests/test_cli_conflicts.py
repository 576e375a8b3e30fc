"""``errata conflicts`` and ``errata diff`` on a tiny random model, and what ``errata edit`` says before it edits."""

from __future__ import annotations

import json

import pytest

import errata
from errata.patch import Patch

CITY = "{} is located in the city of"
QUICK = ("--corpus", "identity", "--set", "contexts=1", "--set", "steps=2", "--layer", "1")


def record(subject, target, prompt=CITY):
    return {"prompt": prompt, "subject": subject, "target_new": target}


TOWER, LOUVRE = record("The Eiffel Tower", "Rome"), record("The Louvre", "Oslo")
DESIGNED = record("The Eiffel Tower", "Leonardo", "{} was designed by")


@pytest.fixture(scope="module")
def patches(model, tmp_path_factory):
    folder, lm = tmp_path_factory.mktemp("patches"), errata.load(model)
    options = {"corpus": "identity", "contexts": 1, "steps": 2, "layer": 1}
    for name, target, steps in (("a", "Rome", 2), ("b", "Berlin", 3)):
        edit = errata.Edit(**record("The Eiffel Tower", target))
        errata.edit(lm, edit, config={**options, "steps": steps}).save_pretrained(folder / name)
    return folder


@pytest.fixture
def file(tmp_path):
    def write(*records):
        (tmp_path / "edits.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return "edits.jsonl"

    return write


def document(result, code=0):
    assert result[0] == code, result
    return json.loads(result[1])


# errata conflicts


def test_none(cli, file):
    code, out, _ = cli("conflicts", "--file", file(TOWER, LOUVRE))
    assert code == 0
    assert "2 edits: no conflict." in out
    assert "--model" in out
    assert cli("conflicts", "-f", "edits.jsonl", "-q") == (0, "no conflict\n", "")
    assert document(cli("conflicts", "-f", "edits.jsonl", "--json")) == {
        "edits": 2, "keys_compared": False, "parallel": 0.98, "conflicts": [],
    }  # fmt: skip


def test_two_answers_to_one_question_exit_with_1(cli, file):
    code, out, _ = cli("conflicts", "-f", file(TOWER, {**TOWER, "target_new": "Berlin"}, LOUVRE))
    assert code == 1
    assert "same question" in out
    assert "'Rome' and 'Berlin'" in " ".join(out.split())
    told = document(cli("conflicts", "-f", "edits.jsonl", "--json"), code=1)
    assert told["conflicts"][0]["second"]["target_new"] == "Berlin"


def test_a_remark_alone_is_no_failure(cli, file):
    code, out, _ = cli("conflicts", "-f", file(TOWER, TOWER))
    assert code == 0
    assert "1 duplicate" in out


def test_the_edits_of_patches_count_as_made_before(cli, file, patches):
    told = document(cli("conflicts", "-f", file(TOWER), "-p", patches / "a", "-p", patches / "b", "--json"), code=1)
    assert [(c["kind"], c["carried"]) for c in told["conflicts"]] == [("same question", True), ("duplicate", True)]
    assert "(made before)" in cli("conflicts", "-f", "edits.jsonl", "-p", patches / "b")[1]


def test_keys_in_a_model(cli, file, model):
    told = document(cli("conflicts", "-f", file(TOWER, DESIGNED), "-m", model, "--json"), code=1)
    assert told["keys_compared"] is True
    assert told["conflicts"][0]["kind"] == "parallel keys"
    assert told["conflicts"][0]["cosine"] == pytest.approx(1.0, abs=1e-4)
    code, out, _ = cli("conflicts", "-f", "edits.jsonl", "-m", model, "--layer", "1", "--layer", "2")
    assert code == 1
    assert "layer 1" in out
    assert "--model" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-f", "nowhere.jsonl"), "no file"),
        (("-f", "edits.jsonl", "-p", "nowhere"), "not a folder"),
        (("-f", "edits.jsonl", "--parallel", "1.5", "-m", "./nowhere"), "at most 1"),
        (("-f", "edits.jsonl", "-m", "./nowhere"), "There is no folder"),
    ],
)
def test_bad_input_is_one_sentence(cli, file, arguments, words):
    file(TOWER)
    code, out, err = cli("conflicts", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("errata: ")
    assert err.count("\n") == 1
    assert words in err


# errata edit


def test_edit_warns_on_standard_error_before_it_edits_several(cli, file, model):
    flags = ("edit", "-m", model, "-f", file(TOWER, DESIGNED), *QUICK)
    _, out, err = cli(*flags)
    assert "parallel keys" in err
    assert "parallel keys" not in out
    assert cli(*flags, "-q")[2] == ""


def test_edit_lists_conflicts_in_its_document_and_says_nothing_of_none(cli, file, model):
    code, out, err = cli("edit", "-m", model, "-f", file(TOWER, DESIGNED), *QUICK, "--json")
    assert code in (0, 1)
    assert err == ""
    assert [c["kind"] for c in json.loads(out)["conflicts"]] == ["parallel keys"]
    code, out, _ = cli("edit", "-m", model, "-f", file(TOWER), *QUICK, "--json")
    assert json.loads(out)["conflicts"] == []


def test_many_conflicts_are_cut_short_where_they_are_a_warning(cli, file, model):
    flags = ("edit", "-m", model, *QUICK, "-f")
    edits = [record("The Eiffel Tower", f"answer {i}", f"{{}} has as its number {i} the") for i in range(5)]
    _, _, err = cli(*flags, file(*edits))
    assert "10 parallel keys" in err
    assert "lists all 10" in err


# errata diff


def test_diff(cli, patches):
    code, out, _ = cli("diff", patches / "a", patches / "b")
    assert code == 0
    assert "config.steps" in out
    assert "1 changed" in out
    assert "mlp.down_proj.weight" in out
    assert "different answers to the same question" in out
    told = document(cli("diff", patches / "a", patches / "b", "--json"))
    assert told["a"] == str(patches / "a")
    assert told["stackable"] is True
    assert told["edits"]["changed"][0]["b"]["target_new"] == "Berlin"
    (weight,) = told["weights"]
    assert (weight["rank_a"], weight["rank_b"]) == (1, 1)
    assert weight["overlap"] == pytest.approx(1.0, abs=1e-4)  # one key, and two values
    assert cli("diff", patches / "a", patches / "a", "-q")[1] == (
        "0 edit(s) only in A, 0 only in B, 1 in both, 0 changed\n"
    )
    assert "one patch" in cli("diff", patches / "a", patches / "a")[1]


def test_diff_of_what_is_no_patch(cli, patches):
    code, out, err = cli("diff", patches / "a", "nowhere")
    assert (code, out) == (2, "")
    assert "not a folder" in err


def test_an_edit_that_was_interrupted_goes_on(cli, model, file, tmp_path):
    flags = ("edit", "-m", model, "-f", file(TOWER, LOUVRE), *QUICK, "--method", "memit", "--resume", "work", "--json")
    first = json.loads(cli(*flags, "--out", "one")[1])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("values_*.safetensors")}
    again = json.loads(cli(*flags, "--out", "two")[1])
    assert len(kept) == 1
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("values_*.safetensors")}
    assert (first["patch"], again["patch"]) == ("one", "two")
    assert Patch.from_pretrained("one").digest == Patch.from_pretrained("two").digest
