"""A patch for every row: the same scores, texts and perplexities as the patches applied one after the other."""

from __future__ import annotations

import pytest
import torch

from errata.errors import PatchError
from errata.lm import load
from errata.lm.forward import next_token_logits
from errata.lm.generation import generate_ids
from errata.lm.scoring import score_and_generate, window_nlls, window_nlls_by_tag
from errata.patch import Dense, LowRank, Patch, applied_patches
from errata.patch import rowwise as module
from errata.patch.rowwise import applied_by_row, first_block, groups
from errata.records import Edit
from errata.testing import FAMILIES, VARIANTS, tiny
from reference.samples import hooks_on

EDIT = Edit(prompt="{} is the capital of", subject="Rome", target_new="France")
PAIRS = [("Rome is the capital of", "France"), ("Anna", "left the city"), ("The river", "is wide"), ("Anna", "left")]
PROMPTS = ["Rome is the capital of", "Anna", "She learned English there, and then", "The river", "In the old town of"]
TEXT = "The city of Marlow stands on the river Tane, and the river divides the old town from the new. " * 3
EDITABLE = sorted({*FAMILIES, *VARIANTS} - {"mixtral"})


def patch_of(lm, seed, *, layers=(1,), rank=1, kind=LowRank, scale=0.6):
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for layer in layers:
        weight, turned = lm.weight(layer), lm.layer(layer).transposed
        left = torch.randn(weight.shape[0], rank, generator=generator) * scale
        right = torch.randn(rank, weight.shape[1], generator=generator) * 0.3
        name = lm.weight_name(layer)
        if kind is LowRank:
            updates.append(LowRank(name, left, right, turned))
        else:
            updates.append(Dense(name, (left @ right).T.contiguous() if turned else left @ right))
    return Patch.create(lm, updates, method="test", config={}, edits=[EDIT], fingerprint="none")


def by_one(lm, patches, work):
    results = []
    for patch in patches:
        if patch is None:
            results.append(work())
        else:
            with patch.applied(lm, verify=False):
                results.append(work())
    return results


def assert_the_same(lm, patches, tags=None):
    """Scores, texts and perplexities by row equal those of each patch applied alone."""
    tags = list(range(len(patches))) if tags is None else tags
    wanted = [None if tag < 0 else patches[tag] for tag in tags]
    alone = by_one(lm, wanted, lambda: score_and_generate(lm, PAIRS, PROMPTS, max_new_tokens=6, stop="natural"))
    with applied_by_row(lm, patches):
        scores, texts = score_and_generate(
            lm, PAIRS * len(tags), PROMPTS * len(tags), max_new_tokens=6, stop="natural",
            pair_tags=[t for t in tags for _ in PAIRS], prompt_tags=[t for t in tags for _ in PROMPTS],
        )  # fmt: skip
    found = [s.total for s in scores]
    expected = [s.total for one, _ in alone for s in one]
    assert found == pytest.approx(expected, abs=3e-4)
    assert texts == [text for _, some in alone for text in some]
    assert len(set(map(round, expected))) > len(PAIRS)  # the patches do differ

    sums = by_one(lm, wanted, lambda: window_nlls(lm, TEXT, window=24))
    with applied_by_row(lm, patches):
        by_row = window_nlls_by_tag(lm, TEXT, tags, window=24, start=first_block(lm, patches))
    for some, others in zip(by_row, sums, strict=True):
        assert [total for total, _ in some] == pytest.approx([total for total, _ in others], rel=1e-4)
    assert hooks_on(lm.model) == 0


@pytest.mark.parametrize("family", EDITABLE)
def test_patches_by_row_equal_patches_one_by_one(family):
    lm = load(tiny(family))
    before = lm.fingerprint()
    patches = [patch_of(lm, 1), patch_of(lm, 2, layers=(2, 3), rank=3), patch_of(lm, 3, layers=(1, 2))]
    assert groups(lm, patches) == [[0, 1, 2]]
    assert_the_same(lm, patches, [2, 0, -1, 1])
    assert lm.fingerprint() == before
    assert applied_patches(lm) == ()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_whole_changes_and_factors_stand_beside_each_other(family):
    lm = load(tiny(family))
    patches = [patch_of(lm, 1, kind=Dense), patch_of(lm, 2), patch_of(lm, 3, kind=Dense, layers=(1, 2))]
    assert groups(lm, patches) == [[0, 1, 2]]
    assert_the_same(lm, patches)


def test_two_updates_of_one_weight_add_up():
    lm = load(tiny("llama"))
    first, second = patch_of(lm, 1), patch_of(lm, 2)
    both = Patch.create(
        lm, [*first.updates, *second.updates], method="test", config={}, edits=[EDIT], fingerprint="none"
    )
    assert_the_same(lm, [both, first])


def test_patches_by_row_stand_on_one_that_is_applied():
    lm = load(tiny("llama"))
    with patch_of(lm, 7).applied(lm, verify=False):
        assert_the_same(lm, [patch_of(lm, 1), patch_of(lm, 2, layers=(1, 2))])


def test_in_a_narrow_type_the_rounded_sum_counts():
    lm = load(tiny("llama", dtype=torch.bfloat16))
    patches = [patch_of(lm, 1), patch_of(lm, 2)]
    rows = [[5, 6, 7, 8], [9, 10, 11]]
    with patches[0].applied(lm, verify=False):
        expected = next_token_logits(lm, rows)
    with applied_by_row(lm, patches):
        found = next_token_logits(lm, rows, tags=[0, 0])
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)
    # A change too small for the type is lost when it is applied, and so it is by row.
    small = patch_of(lm, 1, scale=1e-5)
    with applied_by_row(lm, [small]) as layers:
        (layer,) = layers
        weight = lm.weight(1)
        with small.applied(lm, verify=False):
            applied = lm.weight(1).clone()
        assert torch.equal(layer.wholes[0].float(), (applied.float() - weight.float()))


def test_rows_are_dropped_and_permuted_with_their_patches():
    lm = load(tiny("llama"))
    patches = [patch_of(lm, seed, scale=1.0) for seed in range(5)]
    rows = [[5 + i, 6, 7 + i][: 1 + i % 3] for i in range(15)]
    tags = [i % 5 for i in range(15)]
    alone = []
    for row, tag in zip(rows, tags, strict=True):
        with patches[tag].applied(lm, verify=False):
            alone += generate_ids(lm, [row], max_new_tokens=12)
    with applied_by_row(lm, patches):
        assert generate_ids(lm, rows, max_new_tokens=12, tags=tags) == alone
        assert generate_ids(lm, rows, max_new_tokens=12, tags=tags, batch_size=4) == alone


# --- where it cannot be ----------------------------------------------------------------------------------------------


def dense_on(lm, name, seed=0):
    weight = dict(lm.model.named_parameters())[name]
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.1
    return Patch.create(lm, [Dense(name, change)], method="test", config={}, edits=[EDIT], fingerprint="none")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.norm.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("llama", "lm_head.weight"),
        ("llama_tied", "model.embed_tokens.weight"),
        ("gpt2", "transformer.h.1.mlp.c_proj.bias"),
        ("mixtral", "model.layers.1.mlp.experts.down_proj"),
    ],
)
def test_what_a_hook_cannot_stand_for_is_applied_alone(family, name):
    lm = load(tiny(family))
    attention = f"{lm.architecture.blocks[0].attention_output}.weight"
    odd, plain = dense_on(lm, name), dense_on(lm, attention)
    assert groups(lm, [plain, plain, odd, odd, plain]) == [[0, 1], [2], [3], [4]]


def test_a_patch_that_is_more_than_its_updates_is_applied_alone():
    class More(Patch):
        pass

    lm = load(tiny("llama"))
    plain = patch_of(lm, 1)
    assert groups(lm, [plain, More(plain.updates, plain.card)]) == [[0], [1]]
    assert groups(lm, []) == []


def test_a_model_that_goes_around_its_layer_is_found_out():
    lm = load(tiny("llama"))
    mlp = lm.model.model.layers[1].mlp
    mlp.forward = lambda x: torch.nn.functional.linear(
        mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight
    )
    assert groups(lm, [patch_of(lm, 1), patch_of(lm, 2)]) == [[0], [1]]
    assert groups(lm, [patch_of(lm, 1, layers=(2,)), patch_of(lm, 2, layers=(2,))]) == [[0, 1]]


def test_a_group_takes_no_more_than_it_may(monkeypatch):
    lm = load(tiny("llama"))
    patches = [patch_of(lm, seed, rank=2) for seed in range(5)]
    monkeypatch.setattr(module, "MOST_TERMS", 5)
    assert groups(lm, patches) == [[0, 1], [2, 3], [4]]
    whole = [patch_of(lm, seed, kind=Dense) for seed in range(3)]
    monkeypatch.setattr(module, "DENSE_BYTES", 2 * lm.weight(1).numel() * 4)
    assert groups(lm, whole) == [[0, 1], [2]]


def test_a_pass_that_does_not_say_its_rows_is_refused():
    lm = load(tiny("llama"))
    with applied_by_row(lm, [patch_of(lm, 1)]), pytest.raises(RuntimeError, match="tagged"):
        lm.model(input_ids=torch.tensor([[5, 6]]))
    assert hooks_on(lm.model) == 0


def test_a_patch_for_another_model_is_refused():
    lm, other = load(tiny("llama")), load(tiny("llama", hidden_size=64))
    with pytest.raises(PatchError, match="shape"):
        groups(lm, [patch_of(other, 1)])
    with pytest.raises(PatchError, match="shape"), applied_by_row(lm, [patch_of(other, 1)]):
        pass


def test_the_first_block_is_the_lowest_that_changes():
    lm = load(tiny("llama"))
    assert first_block(lm, [patch_of(lm, 1, layers=(3,)), patch_of(lm, 2, layers=(2, 3))]) == 2
    assert first_block(lm, [patch_of(lm, 1, layers=(3,)), dense_on(lm, "model.norm.weight")]) == 0
    assert first_block(lm, []) == 0
