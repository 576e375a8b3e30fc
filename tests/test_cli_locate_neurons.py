"""The verbs that look for neurons, values, layers: what they leave, what they say, and how they refuse."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import errata
from errata.patch import Patch

FILES = ("metrics.json", "records.jsonl", "index.html")


@pytest.fixture
def locate(cli):
    """Run a verb of ``errata locate`` in an empty folder."""
    return partial(cli, "locate")


def left(folder, name):
    folder = Path(folder)
    assert {*FILES, f"{name}.json", f"{name}.png", f"{name}.svg"} == {file.name for file in folder.iterdir()}
    return json.loads((folder / f"{name}.json").read_text())


def write(path, *records):
    Path(path).write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def test_neurons_of_one_fact_with_a_patch(locate, model):
    code, out, err = locate(
        "neurons", "-m", model, "-o", "out", "--prompt", "The capital of Italy is",
        "--prompt", "Italy has its capital in", "--answer", "Rome",
        "--steps", 4, "--share", 0.4, "--effects", "--patch", "patch",
    )  # fmt: skip
    assert code == 0, err
    assert "Rome" in out
    assert "the patch is patch" in out
    content = left("out", "neurons")
    assert content["facts"][0]["neurons"]
    assert len(content["effects"]) == 6
    lm = errata.load(model)
    patch = Patch.from_pretrained("patch")
    with patch.applied(lm):
        for found in content["facts"][0]["neurons"]:
            assert bool((lm.weight(found["layer"])[:, found["index"]] == 0).all())


def test_neurons_of_a_file_and_of_the_starter_cases_as_json(locate, model):
    fact = {"fact_id": "a", "prompts": ["Rome is in", "The city of Rome is in"], "answer": "Italy"}
    facts = write("facts.jsonl", fact)
    code, out, _ = locate("neurons", "-m", model, "-o", "one", "--facts", facts, "--steps", 2, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["what"]["verb"] == "locate neurons"
    assert document["metrics"]["neurons_per_fact"]["n"] == 1
    code, out, _ = locate("neurons", "-m", model, "-o", "two", "--limit", 2, "--steps", 2, "--quiet")
    assert (code, out.strip()) == (0, "two")
    code, _, err = locate(
        "neurons", "-m", model, "-o", "three", "--limit", 1, "--steps", 2, "--share", 0, "--by-activation",
        "--patch", "p", "--operation", "amplify", "--factor", 3,
    )  # fmt: skip
    assert code == 0, err
    assert Patch.from_pretrained("p").card.config["factor"] == 3


def test_values_by_words_neurons_and_peak(locate, model):
    Path("words.txt").write_text("Rome\n\nParis\n")
    code, out, err = locate("values", "-m", model, "-o", "a", "--words", "words.txt", "--word", "London", "--limit", 3)
    assert code == 0, err
    assert left("a", "values")["what"]["words"] == ["London", "Rome", "Paris"]
    assert locate("values", "-m", model, "-o", "b", "--word", "Rome", "--concept", "--layer", 1, "--no-gain")[0] == 0
    code, out, _ = locate("values", "-m", model, "-o", "c", "--neuron", "1:5", "--neuron", "0:2", "--patch", "p")
    assert code == 0
    assert "1:5" in out
    assert sum(update.rank for update in Patch.from_pretrained("p").updates) == 2
    assert locate("values", "-m", model, "-o", "d", "--limit", 2, "--json")[0] == 0


def test_lens(locate, model):
    code, out, err = locate("lens", "-m", model, "-o", "l", "--prompt", "The capital of Italy is", "--answer", "Rome")
    assert code == 0, err
    assert "P(Rome)" in out
    assert len(left("l", "lens")["layers"]) == 4


def test_toxic_layer(locate, model):
    pairs = write(
        "pairs.jsonl",
        {"safe": "I will not speak about paper.", "unsafe": "Fold the paper in the middle."},
        {"safe": "I would rather not say.", "unsafe": "The river is wide."},
    )
    code, out, err = locate("toxic-layer", "-m", model, "-o", "t", "--file", pairs, "--pool", "mean")
    assert code == 0, err
    assert "*" in out
    assert left("t", "toxic-layer")["what"]["pool"] == "mean"
    assert locate("toxic-layer", "-m", model, "-o", "u", "--safe", "no", "--unsafe", "yes", "--json")[0] == 0


def test_privacy(locate, model):
    values = write(
        "values.jsonl",
        {"value_id": "t", "prompt": "The house of Tilda Marrow has the number", "value": "555 01 17"},
        {"value_id": "o", "text": "Orm Vesterby may be found at 555 01 42 by day", "value": "555 01 42"},
    )
    code, _, err = locate(
        "privacy", "-m", model, "-o", "p", "--file", values, "--steps", 2, "--effects", "--patch", "q", "--factor", 0.5
    )
    assert code == 0, err
    content = left("p", "privacy")
    assert [value["value_id"] for value in content["values"]] == ["t", "o"]
    assert "Tilda" not in "".join(file.read_text(errors="ignore") for file in Path("p").iterdir())
    assert Patch.from_pretrained("q").card.config["factor"] == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ("neurons", "--prompt", "The capital of Italy is", "--answer", " "),
        ("neurons", "--prompt", " "),
        ("neurons", "--answer", "Rome"),
        ("neurons", "--prompt", "a", "--facts", "starter"),
        ("neurons", "--facts", "nowhere.jsonl"),
        ("neurons", "--facts", "bad.jsonl"),
        ("neurons", "--facts", "empty.jsonl"),
        ("neurons", "--limit", "0"),
        ("neurons", "--limit", "1", "--steps", "0"),
        ("neurons", "--limit", "1", "--steps", "1", "--rule", "trapezoid"),
        ("neurons", "--limit", "1", "--layer", "99"),
        ("neurons", "--limit", "1", "--share", "2"),
        ("neurons", "--limit", "1", "--threshold", "-1"),
        ("neurons", "--limit", "1", "--factor", "2"),
        ("neurons", "--limit", "1", "--factor", "2", "--patch", "p"),
        ("neurons", "--limit", "1", "--patch", "out"),
        ("neurons", "--limit", "1", "--patch", "out/inside"),
        ("neurons", "--limit", "1", "--patch", "full"),
        ("neurons", "--limit", "1", "--steps", "2", "--threshold", "0.999", "--share", "0.99", "--patch", "p"),
        ("values", "--word", " "),
        ("values", "--concept"),
        ("values", "--words", "empty.jsonl"),
        ("values", "--words", "nowhere.txt"),
        ("values", "--word", "Rome", "--neuron", "1:2"),
        ("values", "--neuron", "12"),
        ("values", "--neuron", "1:99999"),
        ("values", "--neuron", "77:1"),
        ("values", "--word", "Rome", "--limit", "0"),
        ("values", "--word", "Rome", "--top", "0"),
        ("values", "--word", "Rome", "--layer", "-1"),
        ("lens", "--prompt", ""),
        ("lens", "--prompt", "The capital is", "--answer", " "),
        ("lens", "--prompt", "The capital is", "--top", "0"),
        ("toxic-layer",),
        ("toxic-layer", "--safe", "a"),
        ("toxic-layer", "--safe", "same", "--unsafe", "same "),
        ("toxic-layer", "--file", "pairs.jsonl"),
        ("toxic-layer", "--file", "pairs.jsonl", "--safe", "a"),
        ("privacy",),
        ("privacy", "--prompt", "a"),
        ("privacy", "--prompt", "a", "--value", " "),
        ("privacy", "--file", "bad.jsonl"),
        ("privacy", "--prompt", "The number is", "--value", "5", "--threshold", "0"),
        ("privacy", "--prompt", "The number is", "--value", "5", "--most", "0"),
        ("privacy", "--prompt", "The number is", "--value", "5", "--factor", "0.5"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(locate, model, arguments):
    Path("empty.jsonl").write_text("\n")
    Path("bad.jsonl").write_text('{"prompts": ["a"], "prompt": "x", "value": "y"}\n{"prompts": \n')
    write("pairs.jsonl", {"safe": "a", "unsafe": "b"}, {"safe": "c", "unsafe": "c"})
    Path("full").mkdir()
    Path("full/file").write_text("x")
    before = sorted(Path().rglob("*"))
    code, out, err = locate(*arguments, "-m", model, "-o", "out", "--json")
    assert code == 2
    sentence = json.loads(out)["error"]
    assert sentence.endswith((".", "`."))
    assert err.strip() == f"errata: {sentence}"
    if any(name in arguments for name in ("bad.jsonl", "pairs.jsonl")) and "--safe" not in arguments:
        assert "line 2" in sentence
    assert sorted(Path().rglob("*")) == before
