"""Handing a patch on: a merged checkpoint and the way back, and a LoRA adapter that computes the same."""

from __future__ import annotations

import builtins
import errno
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from errata.errors import ErrataError, FingerprintMismatch, PatchError, StorageError
from errata.lm.load import load
from errata.patch import (
    Dense,
    LowRank,
    Patch,
    applied_patches,
    export_lora,
    export_merged,
    restore_merged,
    store,
)
from errata.records import Edit
from errata.testing import FAMILIES, tiny

EDIT = Edit(prompt="{} is the capital of", subject="Paris", target_new="Italy")
DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.2.mlp.up_proj.weight"


def linear_weights(lm) -> list[str]:
    """The weights of the linear layers inside the blocks."""
    kinds = ("Linear", "Conv1D", "FalconLinear")
    paths = [path for path, module in lm.model.named_modules() if type(module).__name__ in kinds]
    return [f"{path}.weight" for path in paths if any(part.isdigit() for part in path.split("."))]


def low_rank(lm, name, *, rank=2, seed=0, scale=0.1) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    weight = lm.model.get_parameter(name)
    turned = type(lm.model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
    d_out, d_in = weight.shape[::-1] if turned else weight.shape
    left = scale * torch.randn(d_out, rank, generator=generator)
    return LowRank(name, left, torch.randn(rank, d_in, generator=generator), turned)


def make_patch(lm, *updates, method="rome") -> Patch:
    return Patch.create(lm, updates, method=method, config={"layer": 1}, edits=[EDIT])


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(model, weights) -> bool:
    now = dict(model.named_parameters())
    return now.keys() == weights.keys() and all(torch.equal(now[name], weights[name]) for name in weights)


def logits(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer("Paris is the capital of", return_tensors="pt")).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_checkpoint_loads_anywhere_and_goes_back_bit_for_bit(family, tmp_path):
    lm = load(tiny(family, layers=2, dtype=torch.bfloat16))
    names = linear_weights(lm)
    patch = make_patch(lm, low_rank(lm, names[0]), low_rank(lm, names[-1], seed=1))
    before, base = snapshot(lm.model), lm.fingerprint()
    patch.merge(tmp_path / "merged", lm)
    assert same(lm.model, before)
    assert applied_patches(lm) == ()
    with patch.applied(lm):
        patched = snapshot(lm.model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert same(merged, patched)
    assert not same(merged, before)
    restore_merged(tmp_path / "merged", tmp_path / "back")
    assert not (tmp_path / "back" / "errata").exists()
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert same(back, before)
    assert load((back, lm.tokenizer)).fingerprint() == base


def test_restored_files_are_those_of_the_unpatched_checkpoint(tmp_path):
    lm = load(tiny("llama"))
    lm.model.save_pretrained(tmp_path / "plain")
    lm.tokenizer.save_pretrained(tmp_path / "plain")
    make_patch(lm, low_rank(lm, DOWN)).merge(tmp_path / "merged", lm)
    restore_merged(tmp_path / "merged", tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {p.name for p in (tmp_path / "plain").iterdir()}
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes(), path.name


def test_a_merged_folder_keeps_its_patches_in_order(tmp_path):
    lm = load(tiny("llama"))
    first = make_patch(lm, low_rank(lm, DOWN, seed=1), method="memit")
    second = make_patch(lm, low_rank(lm, DOWN, seed=2), low_rank(lm, UP, seed=3))
    before = snapshot(lm.model)
    first.apply(lm)
    carried = snapshot(lm.model)
    export_merged([first, second], lm, tmp_path / "merged")
    assert same(lm.model, carried)
    assert applied_patches(lm) == (first,)
    errata = tmp_path / "merged" / "errata"
    assert sorted(path.name for path in errata.iterdir()) == ["01-memit", "02-rome", "originals.safetensors"]
    assert Patch.from_pretrained(errata / "01-memit").digest == first.digest
    assert Patch.from_pretrained(errata / "02-rome").edits == [EDIT]
    assert "errata/02-rome" in (tmp_path / "merged" / "README.md").read_text()
    # Servers read every safetensors file at the top.
    assert [path.name for path in (tmp_path / "merged").glob("*.safetensors")] == ["model.safetensors"]
    restore_merged(tmp_path / "merged", tmp_path / "back")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "back"), before)


def test_a_sharded_checkpoint_goes_back(tmp_path, monkeypatch):
    lm = load(tiny("llama"))
    save = lm.model.save_pretrained
    monkeypatch.setattr(lm.model, "save_pretrained", lambda folder: save(folder, max_shard_size="60KB"))
    before = snapshot(lm.model)
    make_patch(lm, low_rank(lm, DOWN), low_rank(lm, UP)).merge(tmp_path / "merged", lm)
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 2
    restore_merged(tmp_path / "merged", tmp_path / "back")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "back"), before)


def test_weights_with_equal_bits_are_told_apart(tmp_path):
    lm = load(tiny("llama"))
    other = DOWN.replace("layers.1", "layers.2")
    with torch.no_grad():
        # Different before, equal once patched: a look-up by bits alone would take one for the other.
        lm.model.get_parameter(DOWN).zero_()
        lm.model.get_parameter(other).fill_(1.0)
    before = snapshot(lm.model)
    patch = make_patch(lm, Dense(DOWN, torch.full((32, 72), 2.0)), Dense(other, torch.full((32, 72), 1.0)))
    patch.merge(tmp_path / "merged", lm)
    restore_merged(tmp_path / "merged", tmp_path / "back")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "back"), before)


def test_tied_weights_go_back(tmp_path):
    lm = load(tiny("llama_tied"))
    before = snapshot(lm.model)
    make_patch(lm, Dense("lm_head.weight", torch.ones_like(lm.model.lm_head.weight))).merge(tmp_path / "merged", lm)
    assert not same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), before)
    restore_merged(tmp_path / "merged", tmp_path / "back")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "back"), before)


def test_the_packed_origin_is_told_and_the_quantisation_config_left_out(tmp_path):
    lm = load(tiny("llama"))
    lm.quantised_origin = "Q4_1"
    lm.model.config.quantization_config = {"quant_method": "gguf"}
    make_patch(lm, low_rank(lm, DOWN)).merge(tmp_path / "merged", lm)
    assert lm.model.config.quantization_config == {"quant_method": "gguf"}
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert load(str(tmp_path / "merged"), device="cpu").quantised_origin == "Q4_1"
    restore_merged(tmp_path / "merged", tmp_path / "back")
    assert load(str(tmp_path / "back"), device="cpu").quantised_origin == "Q4_1"


def test_a_failed_merge_leaves_nothing_and_the_model_as_it_was(tmp_path, monkeypatch):
    lm = load(tiny("llama"))
    patch, before = make_patch(lm, low_rank(lm, DOWN)), snapshot(lm.model)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        patch.merge(tmp_path / "merged", lm)
    assert list(tmp_path.iterdir()) == []
    assert same(lm.model, before)
    assert applied_patches(lm) == ()


def test_merging_checks_the_model_and_that_there_is_a_patch(tmp_path):
    lm, other = load(tiny("llama")), load(tiny("llama", seed=4))
    patch = make_patch(lm, low_rank(lm, DOWN))
    with pytest.raises(FingerprintMismatch):
        patch.merge(tmp_path / "merged", other)
    with pytest.raises(PatchError, match="no patch"):
        export_merged([], lm, tmp_path / "merged")
    patch.merge(tmp_path / "merged", other, force=True)


@pytest.fixture
def merged(tmp_path):
    lm = load(tiny("llama"))
    make_patch(lm, low_rank(lm, DOWN)).merge(tmp_path / "merged", lm)
    return tmp_path / "merged"


def test_restoring_refuses_what_is_not_a_merged_folder(tmp_path, merged):
    lm = load(tiny("llama"))
    lm.model.save_pretrained(tmp_path / "plain")
    with pytest.raises(PatchError, match=r"has no errata/originals\.safetensors"):
        restore_merged(tmp_path / "plain", tmp_path / "back")
    with pytest.raises(PatchError, match="lies inside"):
        restore_merged(merged, merged / "back")
    with pytest.raises(StorageError, match="not empty"):
        restore_merged(merged, tmp_path / "plain")


def test_restoring_refuses_a_checkpoint_that_was_trained_on(tmp_path, merged):
    tensors = load_file(merged / "model.safetensors")
    tensors[DOWN][0, 0] += 1
    save_file(tensors, merged / "model.safetensors", {"format": "pt"})
    with pytest.raises(PatchError, match=f"{DOWN} .* was changed"):
        restore_merged(merged, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "errata/originals.safetensors"])
def test_restoring_refuses_a_damaged_file(tmp_path, merged, name):
    (merged / name).write_bytes((merged / name).read_bytes()[:-1])
    with pytest.raises(PatchError, match="cut short"):
        restore_merged(merged, tmp_path / "back")


def test_restoring_refuses_originals_without_their_table(tmp_path, merged):
    path = merged / "errata" / "originals.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(PatchError, match="table of weights"):
        restore_merged(merged, tmp_path / "back")


# LoRA


def peft_logits(family, folder, **options):
    from peft import PeftModel

    model, tokenizer = tiny(family, **options)
    return logits(PeftModel.from_pretrained(model, str(folder)).eval(), tokenizer)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "falcon", "gptj"])
def test_an_adapter_computes_what_the_merged_model_does(family, tmp_path):
    lm = load(tiny(family))
    down = [lm.weight_name(layer) for layer in (1, 2)]
    attention = next(name for name in linear_weights(lm) if "attn" in name or "attention" in name)
    updates = [
        low_rank(lm, down[0], rank=1),
        low_rank(lm, down[1], rank=3, seed=1),
        low_rank(lm, down[0], rank=2, seed=2),
        low_rank(lm, attention, rank=1, seed=3),
    ]
    patch = make_patch(lm, *updates)
    errors = patch.to_lora(tmp_path / "lora", lm)
    assert errors == dict.fromkeys((*down, attention), 0.0)
    unpatched = logits(lm.model, lm.tokenizer)
    with patch.applied(lm):
        merged = logits(lm.model, lm.tokenizer)
    torch.testing.assert_close(peft_logits(family, tmp_path / "lora"), merged, rtol=0, atol=1e-5)
    assert (merged - unpatched).abs().max() > 1e-2


def test_adapter_files_hold_what_servers_expect(tmp_path):
    lm = load(tiny("llama"))
    patch = make_patch(lm, low_rank(lm, DOWN, rank=3), low_rank(lm, UP, rank=1))
    patch.to_lora(tmp_path / "lora", lm)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    up = UP.removesuffix(".weight")
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert config["rank_pattern"] == config["alpha_pattern"] == {up: 1}
    assert config["target_modules"] == sorted((DOWN.removesuffix(".weight"), up))
    assert config["base_model_name_or_path"] == lm.name
    assert config["fan_in_fan_out"] is False
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight": (3, 72),
        "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight": (32, 3),
        f"base_model.model.{up}.lora_A.weight": (1, 32),
        f"base_model.model.{up}.lora_B.weight": (72, 1),
    }


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_dense_change_is_cut_only_on_demand_and_its_error_told(family, tmp_path):
    lm = load(tiny(family))
    name = lm.weight_name(1)
    shape = lm.model.get_parameter(name).shape
    change = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    patch = make_patch(lm, Dense(name, change), low_rank(lm, name))
    with pytest.raises(PatchError, match="svd_rank"):
        patch.to_lora(tmp_path / "lora", lm)
    error = patch.to_lora(tmp_path / "cut", lm, svd_rank=4)[name]
    values = torch.linalg.svdvals(change)
    assert error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-4)
    assert 0.1 < error < 1
    # At full rank nothing is lost, so the adapter is exact again.
    assert patch.to_lora(tmp_path / "full", lm, svd_rank=1000)[name] == pytest.approx(0, abs=1e-6)
    with patch.applied(lm):
        merged = logits(lm.model, lm.tokenizer)
    torch.testing.assert_close(peft_logits(family, tmp_path / "full"), merged, rtol=0, atol=1e-4)


def test_lora_refuses_what_it_cannot_hold(tmp_path):
    lm = load(tiny("llama_tied"))
    for update, sentence in (
        (Dense("model.norm.weight", torch.ones(32)), "not the weight of a linear layer"),
        (Dense("lm_head.weight", torch.ones_like(lm.model.lm_head.weight)), "not the weight of a linear layer"),
    ):
        with pytest.raises(PatchError, match=sentence):
            export_lora(make_patch(lm, update), lm, tmp_path / "lora", svd_rank=2)
    patch = make_patch(lm, low_rank(lm, DOWN))
    with pytest.raises(PatchError, match="svd_rank=1 or more"):
        patch.to_lora(tmp_path / "lora", lm, svd_rank=0)
    with pytest.raises(FingerprintMismatch):
        patch.to_lora(tmp_path / "lora", load(tiny("llama_tied", seed=3)))
    with pytest.raises(PatchError, match="no adapter"):
        make_patch(lm).to_lora(tmp_path / "lora", lm)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_can_be_made_while_the_patch_is_on(tmp_path):
    lm = load(tiny("llama"))
    patch = make_patch(lm, low_rank(lm, DOWN))
    with patch.applied(lm):
        patch.to_lora(tmp_path / "lora", lm)
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()


def test_without_peft_the_extra_is_named(tmp_path, monkeypatch):
    lm = load(tiny("llama"))
    real = builtins.__import__

    def without_peft(name, *args, **kwargs):
        if name == "peft" or name.startswith("peft."):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ErrataError, match=r"pip install 'errata\[lora\]'"):
        make_patch(lm, low_rank(lm, DOWN)).to_lora(tmp_path / "lora", lm)


def test_the_adapter_raises_no_warning_for_one_kind_of_layer(tmp_path):
    lm = load(tiny("gpt2"))
    make_patch(lm, low_rank(lm, lm.weight_name(1))).to_lora(tmp_path / "lora", lm)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fan_in_fan_out.*")
        peft_logits("gpt2", tmp_path / "lora")
