"""The verbs on a tiny random model: what they print, what they leave behind, and the code they exit with."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import errata
from errata.bench.preview import control_prompts
from errata.cli.options import parse_settings
from errata.cli.places import default_folder, slug
from errata.cli.stats import parse_layers
from errata.errors import ConfigError
from errata.records import Edit
from errata.testing import tiny

PROMPT, SUBJECT, TARGET = "{} is located in the city of", "The Eiffel Tower", "Rome"
FACT = ("--prompt", PROMPT, "--subject", SUBJECT, "--target", TARGET)
QUICK = ("--corpus", "identity", "--set", "contexts=1", "--layer", "1")


@pytest.fixture(scope="module")
def patch(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patch") / "patch"
    lm = errata.load(model)
    edit = Edit(prompt=PROMPT, subject=SUBJECT, target_new=TARGET)
    errata.edit(lm, edit, config={"corpus": "identity", "contexts": 1, "layer": 1}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def took(monkeypatch):
    """A tiny random model cannot be made to say anything in particular, so the judge is told to be content."""
    monkeypatch.setattr("errata.bench.preview.strict_success", lambda answer, target: True)


def document(result, code=0):
    assert result[0] == code, result
    return json.loads(result[1])


def test_edit_names_its_folder_itself_and_never_writes_over_one(cli, model, tmp_path, took):
    code, out, _ = cli("edit", "--model", model, *FACT, *QUICK)
    assert code == 0
    assert "What else moved" in out
    assert "errata apply" in out
    assert sorted(p.name for p in (tmp_path / "patches").iterdir()) == ["the-eiffel-tower-rome"]
    cli("edit", "--model", model, *FACT, *QUICK)
    assert (tmp_path / "patches" / "the-eiffel-tower-rome-2" / "patch.json").is_file()


def test_edit_json_is_one_document(cli, model, tmp_path, took):
    told = document(cli("edit", "--model", model, *FACT, *QUICK, "--out", "p", "--html", "page.html", "--json"))
    assert told["patch"] == "p"
    assert told["method"] == "r-rome"
    (row,) = told["edits"]
    assert row["target"] == TARGET
    assert row["took"] is True
    assert 0 < row["p_before"] < 1
    assert 0 < row["p_after"] < 1
    assert 0 <= told["controls"]["unchanged"] <= told["controls"]["n"] == len(told["controls"]["cases"]) == 20
    assert set(told["perplexity"]) == {"before", "after", "tokens"}
    assert set(told["seconds"]) == {"load", "edit", "check"}
    assert "<html" in (tmp_path / "page.html").read_text()
    lm = errata.load(model)
    assert errata.Patch.from_pretrained(tmp_path / "p").card.base.fingerprint == lm.fingerprint()


def test_edit_of_a_file_uses_memit_and_quiet_prints_the_path_only(cli, model, tmp_path):
    (tmp_path / "edits.jsonl").write_text(
        "".join(
            json.dumps({"prompt": PROMPT, "subject": subject, "target_new": "Rome"}) + "\n"
            for subject in ("Anna", "Viktor")
        )
    )
    code, out, err = cli("edit", "-m", model, "--file", "edits.jsonl", *QUICK, "--quiet")
    assert code in (0, 1)
    assert out == "patches/2-edits\n"
    assert err == ""
    assert errata.Patch.from_pretrained("patches/2-edits").card.method == "memit"


def test_an_edit_that_does_not_take_is_kept_and_exits_with_1(cli, model, tmp_path):
    weak = ("--set", "steps=1", "--set", "learning_rate=1e-6")
    told = document(cli("edit", "-m", model, *FACT, *QUICK, *weak, "--out", "q", "--json"), code=1)
    assert told["edits"][0]["took"] is False
    code, out, _ = cli("edit", "-m", model, *FACT, *QUICK, *weak, "--out", "p")
    assert code == 1
    assert "did not take" in out
    assert "--set steps=2" in out
    assert (tmp_path / "p" / "patch.json").is_file()


def test_replace_takes_the_place_of_a_patch(cli, model, tmp_path, took):
    for _ in range(2):
        code, _, _ = cli("edit", "-m", model, *FACT, *QUICK, "--out", "p", "--replace", "--quiet")
        assert code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_apply_then_revert_gives_the_model_back_bit_for_bit(cli, model, patch, tmp_path):
    told = document(cli("apply", "-m", model, "--patch", patch, "--out", "merged", "--json"))
    assert told["patches"][0]["method"] == "r-rome"
    code, out, _ = cli("revert", "-m", "merged", "--out", "back")
    assert code == 0
    assert "back" in out
    assert errata.load("./back").fingerprint() == errata.load(model).fingerprint()
    assert errata.load("./merged").fingerprint() != errata.load(model).fingerprint()
    assert document(cli("revert", "-m", "merged", "--out", "again", "--json"))["out"] == "again"


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_export(cli, model, patch, tmp_path, form):
    told = document(cli("export", patch, "-m", model, "--format", form, "--out", form, "--json"))
    assert told["format"] == form
    name = {"lora": "adapter_model.safetensors", "merged": "model.safetensors"}[form]
    assert (tmp_path / form / name).is_file()


def test_show(cli, patch):
    code, out, _ = cli("show", patch)
    assert code == 0
    assert SUBJECT in out
    told = document(cli("show", patch, "--json"))
    assert told["card"]["edits"][0]["target_new"] == TARGET
    assert cli("show", patch, "-q")[1].startswith("r-rome: 1 edit")


def test_methods(cli):
    assert {"rome", "r-rome", "memit"} <= {info["name"] for info in document(cli("methods", "--json"))}
    assert "r-rome" in cli("methods")[1]
    assert "memit\n" in cli("methods", "--quiet")[1]
    options = {option["name"]: option for option in document(cli("methods", "memit", "--json"))["options"]}
    assert options["span"]["default"] == 5
    assert options["span"]["description"]
    assert "span" in cli("methods", "memit")[1]


def test_inspect(cli, model):
    told = document(cli("inspect", "-m", model, "--json"))
    assert told["num_layers"] == told["editable_layers"] == 4
    assert told["architecture"]["blocks"][0]["out_projection"] == "model.layers.0.mlp.down_proj"
    assert told["default_layers"]["r-rome"] == [0]
    code, out, _ = cli("inspect", "-m", model)
    assert code == 0
    assert "0 to 3" in out
    assert "mlp.down_proj" in out


def test_inspect_says_why_a_mixture_cannot_be_edited(cli, tmp_path):
    for part in tiny("mixtral", layers=2):
        part.save_pretrained(tmp_path / "m")
    code, out, _ = cli("inspect", "-m", "./m")
    assert code == 0
    assert "mixture of experts" in " ".join(out.split())


def test_stats(cli, model, tmp_path):
    (tmp_path / "text.txt").write_text("The river is the oldest street of the city.\n" * 40)
    flags = ("stats", "-m", model, "--corpus", "text.txt", "--tokens", "300")
    told = document(cli(*flags, "--layers", "0-1,3", "--json"))
    assert [row["layer"] for row in told["layers"]] == [0, 1, 3]
    assert all(row["trace"] > 0 for row in told["layers"])
    code, out, _ = cli(*flags, "--layers", "all", "--rebuild")
    assert code == 0
    assert "Cache:" in out


def test_evaluate(cli, model, tmp_path):
    flags = ("evaluate", "-m", model, "--cases", "starter", "--limit", "2", "--no-generation", "--corpus", "identity")
    told = document(cli(*flags, "--method", "r-rome", "--set", "contexts=0", "--out", "run", "--json"))
    assert told["what"]["method"] == "r-rome"
    assert told["metrics"]["ES"]["n"] == 2
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert (tmp_path / "run" / "records.jsonl").is_file()
    code, out, _ = cli(*flags[:-2], "--method", "none", "--out", "none")
    assert code == 0
    assert "ES" in out


def test_doctor(cli):
    told = document(cli("doctor", "--json"))
    assert told["ok"] is True
    assert {"self-test", "torch", "cache"} <= {check["name"] for check in told["checks"]}
    assert "Ready to edit." in cli("doctor")[1]


def test_doctor_fails_where_the_cache_cannot_be_written(cli, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "file" / "cache"))
    code, out, _ = cli("doctor", "--quiet")
    assert code == 1
    assert out == "Broken: cache.\n"


def test_no_color_leaves_no_escape_codes(cli, patch, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in cli("show", patch)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in cli("show", patch)[1]


def test_square_brackets_in_prompts_are_shown_as_they_are(cli, model):
    fact = ("--prompt", "[bold]{}[/bold] is in [red]", "--subject", "Anna", "--target", "Rome")
    _, out, _ = cli("edit", "-m", model, *fact, *QUICK, "--out", "p")
    assert "[bold]Anna[/bold] is in [red]" in " ".join(out.replace("│", " ").split())


def test_version_and_help_need_no_torch():
    script = "import sys, errata.cli.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_version(cli):
    assert cli("--version")[1] == f"errata {errata.__version__}\n"


def test_interruption_is_one_line(cli, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("errata.methods.method_names", interrupted)
    assert cli("methods") == (130, "", "errata: interrupted.\n")


def test_settings_are_json_where_they_parse():
    given = ["steps=30", "layers=[2,3]", "corpus=self", "flag=true", "text=a=b", "learning-rate=0.1"]
    assert parse_settings(given) == {
        "steps": 30, "layers": [2, 3], "corpus": "self", "flag": True, "text": "a=b", "learning_rate": 0.1,
    }  # fmt: skip
    for wrong in (["steps"], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError):
            parse_settings(wrong)


def test_layers_are_spans():
    assert parse_layers("2-4, 9,3") == [2, 3, 4, 9]
    for wrong in ("", "a", "4-2", "1,,2", "-1"):
        with pytest.raises(ConfigError):
            parse_layers(wrong)


def test_slugs_and_default_folders(tmp_path):
    assert slug("São Paulo / Ünïted!") == "sao-paulo-united"
    assert slug("!?") == "edit"
    assert slug("東京") == "東京"
    edit = Edit(prompt="{} is", subject="A/B", target_new="../c")
    assert default_folder([edit], tmp_path) == tmp_path / "a-b-c"
    (tmp_path / "a-b-c").mkdir()
    assert default_folder([edit], tmp_path) == tmp_path / "a-b-c-2"
    assert default_folder([edit, edit], tmp_path) == tmp_path / "2-edits"


def test_controls_have_nothing_to_do_with_the_edits():
    prompts = control_prompts([Edit(prompt="{} is in", subject="The Eiffel Tower", target_new="Rome")], 1000)
    assert len(prompts) > 100
    assert not any("Eiffel" in prompt for prompt in prompts)
    spread = control_prompts([Edit(prompt="{} is in", subject="The Eiffel Tower", target_new="Rome")], 20)
    assert len(set(spread)) == 20
    assert spread[0] == prompts[0]


def test_the_model_is_as_it_was_after_a_preview(model, patch):
    from errata.bench.preview import before_after

    lm = errata.load(model)
    weights = {name: weight.clone() for name, weight in lm.model.named_parameters()}
    preview = before_after(lm, errata.Patch.from_pretrained(patch), controls=3, tokens=50)
    assert all(torch.equal(weight, weights[name]) for name, weight in lm.model.named_parameters())
    assert len(preview.controls) == 3
