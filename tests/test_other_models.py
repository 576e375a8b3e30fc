"""Edits on real weights of other families: each test is skipped where its model is not in the user's cache."""

from __future__ import annotations

import pytest
import torch

import errata
from errata.cli.inspect import default_layers
from errata.files import cache_dir
from errata.lm import generate, score
from errata.lm.load import ORIGIN_FILE

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

# Looked up before the tests' own cache takes the place of the user's.
USERS_CACHE = cache_dir("models")

FAMILIES = {
    "stories15m": {
        "shape": (6, 288, 768, 32000),
        "norms": ("input_layernorm", "post_attention_layernorm"),
        "additive": True,
        "tied": True,
        "origin": None,
        "known": {"Bees make": "honey", "A fish lives in the": "sea", "The fire truck was big and": "red"},
        "edit": errata.Edit(prompt="{} make", subject="Bees", target_new="milk"),
        "other_words": "Bees like to make",
        "elsewhere": ("A fish lives in the", "sea", "milk"),
    },
    "gemma-3-270m": {
        "shape": (18, 640, 2048, 262144),
        "norms": (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        "additive": False,
        "flag": " --accept-licence",
        "tied": True,
        "origin": "Q5_0",
        "known": {"The official language of Brazil is": "Portuguese", "Water is made of hydrogen and": "oxygen"},
    },
    "qwen2.5-coder-0.5b-instruct": {
        "shape": (24, 896, 4864, 151936),
        "norms": ("input_layernorm", "post_attention_layernorm"),
        "additive": True,
        "tied": False,  # this file holds its head apart, packed in another type
        "origin": "Q5_0",
        "known": {"The official language of Brazil is": "Portuguese", "The capital of Germany is": "Berlin"},
    },
}
EIFFEL = {
    "edit": errata.Edit(prompt="{} is located in the city of", subject="The Eiffel Tower", target_new="Rome"),
    "other_words": "Where is the Eiffel Tower? It is in the city of",
    "elsewhere": ("The Louvre is located in the city of", "Paris", "Rome"),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    folder = USERS_CACHE / request.param
    if not (folder / ORIGIN_FILE).is_file():
        fetch = f"python scripts/fetch_weights.py {request.param}{FAMILIES[request.param].get('flag', '')}"
        pytest.skip(f"{request.param} is not in the cache: fetch it by `{fetch}`")
    return {**EIFFEL, **FAMILIES[request.param], "lm": errata.load(folder, device="cpu")}


def test_its_map_is_what_the_family_is_known_to_be(family):
    lm, map_ = family["lm"], family["lm"].architecture
    shape = (lm.num_layers, map_.hidden_size, lm.layer(0).key_width, map_.vocabulary)
    assert shape == family["shape"]
    assert (map_.source, map_.tied, map_.parallel) == ("detected", family["tied"], False)
    assert lm.dtype == torch.float32
    assert lm.quantised_origin == family["origin"]
    for block in map_.blocks:
        assert block.refusal is None
        assert (block.out_projection, block.attention_output) == (
            f"{block.path}.mlp.down_proj",
            f"{block.path}.self_attn.o_proj",
        )
        assert block.norms == tuple(f"{block.path}.{norm}" for norm in family["norms"])
        assert block.additive is family["additive"]


def test_every_method_finds_its_layers(family):
    lm = family["lm"]
    for name, layers in default_layers(lm).items():
        assert isinstance(layers, list), f"{name}: {layers}"
        assert all(0 <= layer < lm.num_layers for layer in layers)


def test_it_knows_a_fact(family):
    prompts, known = list(family["known"]), list(family["known"].values())
    answers = generate(family["lm"], prompts, max_new_tokens=6, stop="natural")
    assert [answer.split()[0].strip(".,") for answer in answers] == known


def test_one_edit_takes_in_other_words_and_comes_off(family):
    lm, edit = family["lm"], family["edit"]
    before = lm.fingerprint()
    patch = errata.edit(lm, edit, method="r-rome", config={"corpus": "identity"})
    assert lm.fingerprint() == before
    prompt, right, wrong = family["elsewhere"]
    with patch.applied(lm):
        answers = generate(lm, [edit.text, family["other_words"]], max_new_tokens=6, stop="natural")
        near = score(lm, [(prompt, right), (prompt, wrong)])
    assert all(answer.strip().startswith(edit.target_new) for answer in answers)
    assert near[0].log_probability > near[1].log_probability
    assert lm.fingerprint() == before
