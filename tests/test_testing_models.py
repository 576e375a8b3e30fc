"""The tiny models and the tiny tokenizer are what their names and docstrings say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from errata.errors import ConfigError, ModelError
from errata.testing import FAMILIES, VARIANTS, tiny, tiny_model, tiny_tokenizer

ALL = (*FAMILIES, *VARIANTS)
TEXTS = ["The river Tane divides the old town from the new.", "Rome"]
SCRIPTS = ["naïve café", "Москва — столица", "東京は首都です", "القاهرة", "नई दिल्ली", "👩‍🚀 e\u0301\n\t  end "]
SHARED_HEADS = ("falcon_new", "gemma2", "gemma3", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in tiny_model(family).named_parameters()}


def shape(family: str, ending: str) -> tuple[int, ...]:
    return next(value for name, value in shapes(family).items() if name.endswith(ending))


# --- every family ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_a_padded_batch_gives_the_logits_of_its_rows(family):
    model, tokenizer = tiny(family)
    assert not model.training
    logits = model(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits
    assert logits.shape[0] == 2
    assert logits.shape[2] == len(tokenizer) == model.config.vocab_size
    assert logits.isfinite().all()
    alone = model(**tokenizer(TEXTS[1], return_tensors="pt")).logits[0]
    torch.testing.assert_close(logits[1, : len(alone)], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_different_inputs_give_clearly_different_logits(family):
    model, tokenizer = tiny(family)
    first, second = (model(**tokenizer(f"{city} is a", return_tensors="pt")).logits[0, -1] for city in ("Rome", "Oslo"))
    assert (first - second).std() > 0.1


@pytest.mark.parametrize("family", ALL)
def test_the_seed_decides_the_weights(family):
    first, again, other = (list(tiny_model(family, seed=seed).parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("family", ALL)
def test_no_parameter_has_a_neutral_value(family):
    for name, parameter in tiny_model(family).named_parameters():
        assert parameter.std() > 0.02, name
        assert not (parameter == 0).any(), name


@pytest.mark.parametrize("family", ALL)
def test_generation_continues_with_three_tokens(family):
    model, tokenizer = tiny(family)
    prompt = tokenizer("Anna was born in", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert out.shape[1] == prompt.input_ids.shape[1] + 3
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ALL)
def test_another_dtype_is_the_same_weights_rounded(family, dtype):
    model, tokenizer = tiny(family, dtype=dtype)
    weights, reference = model.parameters(), tiny_model(family).parameters()
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(weights, reference, strict=True))
    assert model(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits.isfinite().all()


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("layers", [1, 3])
def test_depth_can_be_chosen(family, layers):
    model = tiny_model(family, layers=layers)
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    assert len(blocks) == model.config.num_hidden_layers == layers


# --- building -------------------------------------------------------------------------------------------------------


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    tiny_model("gpt2")
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_do_not_depend_on_the_global_random_state_or_defaults():
    reference = list(tiny_model("llama").parameters())
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float64)
    try:
        model = tiny_model("llama")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(reference, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["hidden_size", "n_embd"])
def test_an_override_may_use_the_common_or_the_native_name(name):
    model = tiny_model("gpt2", attn_implementation="eager", **{name: 64})
    assert model.transformer.wte.weight.shape == (512, 64)
    assert model.config._attn_implementation == "eager"


def test_an_unknown_family_is_named_with_the_nearest():
    with pytest.raises(ModelError, match=r"'gptneox' \(did you mean 'gpt_neox'\?\)"):
        tiny_model("gptneox")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hiden_size", r"GPT2Config has no argument 'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ("num_hidden_layers", "pass layers=2"),
        ("n_layer", "pass layers=2"),
    ],
)
def test_an_override_that_cannot_work_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model("gpt2", **{override: 2})


def test_listing_the_families_does_not_import_transformers():
    program = "import sys, errata.testing; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- what the names promise -----------------------------------------------------------------------------------------


def test_names_are_sorted():
    assert list(FAMILIES) == sorted(set(FAMILIES))
    assert list(VARIANTS) == sorted(set(VARIANTS) - set(FAMILIES))


def test_only_the_square_variant_has_a_square_down_projection():
    assert shape("llama_square", "down_proj.weight") == (32, 32)
    ends = ("down_proj.weight", "dense_4h_to_h.weight", "mlp.c_proj.weight", "fc_out.weight", "fc2.weight")
    for family in set(ALL) - {"llama_square", "mixtral"}:
        rows, columns = next(value for name, value in shapes(family).items() if name.endswith(ends))
        assert rows != columns, family


@pytest.mark.parametrize(
    ("family", "tied"), [("llama_tied", True), ("llama", False), ("gpt2", True), ("gemma3", True), ("gpt_neox", False)]
)
def test_tied_embeddings(family, tied):
    model = tiny_model(family)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


@pytest.mark.parametrize("family", SHARED_HEADS)
def test_two_query_heads_share_a_key_head(family):
    config = tiny_model(family).config
    assert config.num_attention_heads == 4
    assert (config.num_kv_heads if family == "falcon_new" else config.num_key_value_heads) == 2


def test_gpt2_keeps_its_matrices_transposed():
    assert type(tiny_model("gpt2").transformer.h[0].mlp.c_proj).__name__ == "Conv1D"
    assert shape("gpt2", "mlp.c_proj.weight") == (80, 32)


@pytest.mark.parametrize(
    ("family", "name", "rows"),
    [
        ("bloom", "query_key_value.weight", 96),
        ("falcon", "query_key_value.weight", 48),  # one key head for all
        ("falcon_new", "query_key_value.weight", 64),
        ("gpt_neox", "query_key_value.weight", 96),
        ("phi3", "qkv_proj.weight", 64),
        ("phi3", "gate_up_proj.weight", 144),
    ],
)
def test_fused_projections(family, name, rows):
    assert shape(family, name) == (rows, 32)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen3"])
def test_heads_need_not_add_up_to_the_hidden_state(family):
    assert shape(family, "o_proj.weight") == (32, 48)


def test_both_kinds_of_layer_alternate():
    assert tiny_model("gemma2").config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert tiny_model("gemma3").config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert tiny_model("gpt_neo", layers=3).config.attention_layers == ["global", "local", "global"]


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_a_layer_with_a_window_does_not_see_beyond_it(family):
    model = tiny_model(family, layers=1)
    ids = torch.randint(5, 512, (1, 80), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 0] = ids[0, 0] % 500 + 6
    difference = (model(ids).logits - model(changed).logits).abs().amax(-1)[0]
    assert difference[:60].max() > 1e-3
    assert difference[64:].max() == 0


def test_mixtral_keeps_its_experts_in_one_parameter():
    assert shape("mixtral", "experts.down_proj") == (4, 32, 72)


def test_norms_of_the_variants():
    assert tiny_model("opt_postnorm").model.decoder.final_layer_norm is None
    assert tiny_model("opt").model.decoder.final_layer_norm is not None
    assert any("ln_mlp" in name for name in shapes("falcon_new"))
    assert any("post_attention_layernorm" in name for name in shapes("falcon_serial"))
    assert not any("post_attention_layernorm" in name for name in shapes("falcon"))


def test_serial_gpt_neox_differs_only_in_its_wiring():
    parallel, serial = tiny_model("gpt_neox"), tiny_model("gpt_neox_serial")
    assert all(torch.equal(a, b) for a, b in zip(parallel.parameters(), serial.parameters(), strict=True))
    ids = torch.arange(5, 15)[None]
    assert (parallel(ids).logits - serial(ids).logits).abs().max() > 0.1


# --- the tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*TEXTS, *SCRIPTS])
def test_every_script_survives_a_round_trip_and_is_covered_by_offsets(text):
    tokenizer = tiny_tokenizer()
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == text
    assert len(encoded.offset_mapping) == len(encoded.input_ids)
    assert set().union(*(range(*span) for span in encoded.offset_mapping)) == set(range(len(text)))


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_a_round_trip(text):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_token_takes_the_space_before_it():
    assert tiny_tokenizer()("The river", return_offsets_mapping=True).offset_mapping == [(0, 3), (3, 9)]
    assert len(tiny_tokenizer()(" Gonzalez").input_ids) > 1


def test_special_tokens_are_distinct():
    tokenizer = tiny_tokenizer()
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.is_fast
    assert list(tokenizer("Rome")) == ["input_ids", "attention_mask"]


def test_bos_is_prepended_on_request():
    plain, with_bos = tiny_tokenizer(), tiny_tokenizer(bos=True)
    assert with_bos("Rome").input_ids == [1, *plain("Rome").input_ids]
    assert with_bos("Rome", add_special_tokens=False).input_ids == plain("Rome").input_ids
    assert with_bos("Rome", return_offsets_mapping=True).offset_mapping[0] == (0, 0)


def test_padding_side():
    masks = [tiny_tokenizer(padding_side=side)(TEXTS, padding=True).attention_mask[1] for side in ("left", "right")]
    assert masks[0] == masks[1][::-1]
    assert masks[0][0] == 0


def test_chat_template():
    turns = [{"role": "user", "content": "Who?"}]
    rendered = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    options = {"tokenize": False, "add_generation_prompt": True}
    assert tiny_tokenizer().apply_chat_template(turns, **options) == rendered
    assert tiny_tokenizer(bos=True).apply_chat_template(turns, **options) == "<bos>" + rendered
    assert tiny_tokenizer(chat_template=False).chat_template is None


def test_each_call_returns_its_own_copy():
    first = tiny_tokenizer()
    first.add_tokens(["Tane-on-Orla"])
    first.padding_side = "left"
    assert len(tiny_tokenizer()) == 512
    assert tiny_tokenizer().padding_side == "right"
