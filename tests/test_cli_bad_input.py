"""Bad input: one sentence on standard error, exit code 2, no traceback, and nothing half-written."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import errata
from errata.cli import main
from errata.records import Edit
from errata.testing import tiny

FACT = {"--prompt": "{} is located in", "--subject": "The Eiffel Tower", "--target": "Rome"}
QUICK = ("--corpus", "identity", "--set", "contexts=1", "--layer", "1")


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a command line that must be refused; gives the sentence."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*arguments, leaves=()):
        capsys.readouterr()  # what saving a model said
        for extra in ((), ("--json",)):
            with pytest.raises(SystemExit) as leaving:
                main.run([str(argument) for argument in (*arguments, *extra)])
            out, err = capsys.readouterr()
            assert leaving.value.code == 2, err
            assert err.startswith("errata: ")
            assert err.count("\n") == 1
            assert err.endswith(".\n")
            assert "Traceback" not in err
            sentence = err.removeprefix("errata: ").strip()
            if extra:
                told = json.loads(out)
                assert told["error"] == sentence
                assert told["kind"].endswith(("Error", "Mismatch"))
            else:
                assert out == ""
            assert sorted(p.name for p in work.iterdir()) == sorted(leaves)
        return sentence

    return call


def edit(model, **changes):
    flags = {**FACT, **{f"--{name}": value for name, value in changes.items()}}
    return ("edit", "-m", model, *QUICK, *(part for flag in flags.items() for part in flag))


NOWHERE = "./no-such-model"  # what is refused before a model is loaded never looks for it


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "It is located in"}, "missing from the prompt"),
        ({"prompt": "{} is {} in"}, "2 slots"),
        ({"target": "  "}, "empty"),
        ({"subject": ""}, "empty"),
        ({"method": "r-roem"}, "did you mean 'r-rome'"),
        ({"set": "stepz=3"}, "no option 'stepz'"),
        ({"set": "steps=many"}, "'steps' cannot be 'many'"),
        ({"set": "steps"}, "KEY=VALUE"),
        ({"set": "layer=2"}, "both give 'layer'"),
        ({"file": "edits.jsonl"}, "--file"),
        ({"out": "/dev/null"}, "is a file"),
        ({"out": "/dev/null/patch"}, "not a folder"),
        ({"html": "/"}, "name a file"),
    ],
)
def test_an_edit_is_refused_before_a_model_is_loaded(refused, changes, words):
    assert words in refused(*edit(NOWHERE, **changes))


def test_a_missing_flag_is_named(refused):
    assert "no --target" in refused("edit", "-m", NOWHERE, "--prompt", "{} is", "--subject", "Anna")


def test_a_corpus_that_is_not_there(refused):
    flags = [part for flag in FACT.items() for part in flag]
    assert "no corpus" in refused("edit", "-m", NOWHERE, *flags, "--corpus", "nowhere.txt")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"prompt": "{} is", "subject": "A", "target_new": "b"}', "{broken"], "line 2 is not valid JSON"),
        (['{"prompt": "{} is", "subject": "A", "target_new": "b"}', '{"prompt": "{} is", "subject": "A"}'], "line 2"),
        ([json.dumps({"prompt": "{} is", "subject": "A", "target_new": t}) for t in "bc"], "contradict each other"),
        ([], "holds no record"),
    ],
)
def test_a_file_of_edits_names_its_fault(refused, tmp_path, lines, words):
    file = tmp_path / "edits.jsonl"
    file.write_text("\n".join(lines))
    assert words in refused("edit", "-m", NOWHERE, "--file", file)


def test_no_such_model(refused):
    assert "There is no folder" in refused(*edit(NOWHERE))


@pytest.mark.parametrize("layer", [3, 4, -1, "five", "1.5"])
def test_a_layer_that_cannot_be_edited(refused, model, layer):
    flags = [part for flag in FACT.items() for part in flag]
    sentence = refused("edit", "-m", model, *flags, "--corpus", "identity", "--layer", layer)
    assert "ayer" in sentence


def test_a_layer_by_trial_on_a_model_that_knows_nothing(refused, model):
    flags = [part for flag in FACT.items() for part in flag]
    assert "auto" in refused("edit", "-m", model, *flags, "--corpus", "identity", "--layer", "auto")


def test_unfinished_work_in_place_of_a_folder(refused, model, tmp_path):
    (tmp_path / "file").write_text("")
    assert "name a folder" in refused(*edit(model), "--resume", tmp_path / "file")


def test_a_target_that_the_tokenizer_cannot_express(refused, model):
    assert "cannot express" in refused(*edit(model, target="<eos>"))


def test_an_optimisation_that_is_not_finite(refused, tmp_path):
    broken, tokenizer = tiny("llama")
    with torch.no_grad():
        broken.lm_head.weight.fill_(3e38)
    for part in (broken, tokenizer):
        part.save_pretrained(tmp_path / "broken")
    flags = [part for flag in FACT.items() for part in flag]
    assert "not a number" in refused(
        "edit", "-m", tmp_path / "broken", *flags, "--corpus", "identity", "--set", "contexts=0"
    )


def test_a_full_disk_leaves_nothing(refused, model, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("errata.patch.store._save_file", full)
    assert "No space left" in refused(*edit(model, out="p"))


def test_a_folder_that_is_taken_stays_as_it_is(refused, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    assert "not empty" in refused(*edit(NOWHERE, out=taken))
    assert "something else than a patch" in refused(*edit(NOWHERE, out=taken), "--replace")
    assert [p.name for p in taken.iterdir()] == ["thesis.txt"]


def test_a_model_without_a_tokenizer(refused, tmp_path):
    tiny("llama")[0].save_pretrained(tmp_path / "bare")
    assert "tokenizer" in refused(*edit(tmp_path / "bare"))


def test_packed_weights(refused, model, monkeypatch):
    packed = tiny("llama")[0]
    packed.hf_quantizer = object()
    # errata.lm.load is also the name of the function, which hides the module from a dotted path.
    monkeypatch.setattr(sys.modules["errata.lm.load"], "_load_model", lambda *_, **__: packed)
    assert "packed" in refused(*edit(model))


@pytest.fixture(scope="module")
def patch(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patch") / "patch"
    request = Edit(prompt="{} is in", subject="Anna", target_new="Rome")
    config = {"corpus": "identity", "contexts": 1, "layer": 1}
    errata.edit(errata.load(str(model)), request, config=config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("verb", ["show", "apply", "export"])
def test_a_truncated_patch(refused, model, patch, tmp_path, verb):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in patch.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    whole = (copy / "patch.safetensors").read_bytes()
    (copy / "patch.safetensors").write_bytes(whole[: len(whole) // 2])
    commands = {
        "show": ("show", copy),
        "apply": ("apply", "-m", model, "--patch", copy, "--out", "out"),
        "export": ("export", copy, "-m", model, "--out", "out"),
    }
    assert "cut short" in refused(*commands[verb])


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_a_patch_of_another_base(refused, model, patch, tmp_path, form):
    weights = load_file(Path(model) / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    for file in Path(model).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert "fingerprint" in refused("export", patch, "-m", other, "--format", form, "--out", "out")
    assert "fingerprint" in refused("apply", "-m", other, "--patch", patch, "--out", "out")


def test_reverting_what_was_never_patched(refused, model):
    assert "a patch was merged into" in refused("revert", "-m", model, "--out", "out")


def test_showing_what_is_no_patch(refused, model):
    assert "patch.json" in refused("show", model)
    assert "not a folder" in refused("show", "./nothing/of/this")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--cases", "nowhere.jsonl"), "no file"),
        (("--method", "roam"), "no method"),
        (("--method", "none", "--set", "steps=3"), "edits nothing"),
        (("--text", "nowhere.txt"), "no file"),
    ],
)
def test_an_evaluation_is_refused_before_a_model_is_loaded(refused, flags, words):
    assert words in refused("evaluate", "-m", NOWHERE, "--out", "run", *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--layers", "five"), "--layers"),
        (("--corpus", "identity"), "no text"),
        (("--corpus", "gone.txt"), "no corpus"),
    ],
)
def test_statistics_are_refused_before_a_model_is_loaded(refused, flags, words):
    assert words in refused("stats", "-m", NOWHERE, *flags)


def test_an_unknown_method_has_no_options_to_show(refused):
    assert "There is no method 'nome'" in refused("methods", "nome")
