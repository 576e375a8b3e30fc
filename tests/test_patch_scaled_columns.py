"""Scaled columns: the same as scaled activations, exact in files, taken back bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

import errata
from errata.cli.main import run
from errata.errors import PatchError
from errata.lm.activations import replace
from errata.lm.forward import next_token_logits
from errata.patch import LowRank, Patch, ScaledColumns, export_lora
from errata.patch.rowwise import applied_by_row, groups
from errata.patch.updates import apply_together
from errata.testing import FAMILIES, VARIANTS, tiny
from reference.samples import one_sentence

DENSE = [f for f in (*FAMILIES, *VARIANTS) if f != "mixtral"]
IDS = torch.tensor([[5, 40, 71, 200, 33]])


def tiny_lm(family="llama", **options):
    return errata.load(tiny(family, **options))


def scaled(lm, layer, columns):
    weight = lm.model.get_parameter(lm.weight_name(layer))
    return ScaledColumns.of(lm.weight_name(layer), weight, columns, transposed=lm.layer(layer).transposed)


def patch_of(lm, *updates):
    return Patch.create(lm, updates, method="knowledge-neurons", config={"operation": "suppress"}, edits=[])


def snapshot(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}


def same(lm, weights):
    return all(torch.equal(p.detach(), weights[name]) for name, p in lm.model.named_parameters())


@torch.no_grad()
def logits(lm):
    return lm.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("family", DENSE)
def test_scaling_a_column_is_scaling_the_neuron_everywhere(family):
    lm = tiny_lm(family)
    clean = logits(lm)
    factors = torch.ones(lm.layer(1).key_width)
    factors[[3, 17]] = torch.tensor([0.0, 2.0])
    with replace(lm.model, lm.layer(1).out_projection, lambda taken: taken * factors, where="input"):
        wanted = logits(lm)
    with patch_of(lm, scaled(lm, 1, {3: 0.0, 17: 2.0})).applied(lm):
        torch.testing.assert_close(logits(lm), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(clean, wanted, atol=1e-5)
    assert torch.equal(logits(lm), clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", DENSE)
def test_saved_loaded_applied_reverted_bit_for_bit(family, dtype, tmp_path):
    lm = tiny_lm(family, dtype=dtype)
    before = snapshot(lm)
    made = patch_of(lm, scaled(lm, 0, {0: 0.0, 5: 2.0}), scaled(lm, 2, {7: 0.5}))
    made.save_pretrained(tmp_path / "p")
    read = Patch.from_pretrained(tmp_path / "p")
    assert read.digest == made.digest
    assert read.card.to_dict()["updates"] == made.card.to_dict()["updates"]
    read.apply(lm)
    touched = {lm.weight_name(0): {0, 5}, lm.weight_name(2): {7}}
    for name, weight in lm.model.named_parameters():
        moved = weight.detach() != before[name]
        if name in touched:
            columns = moved if lm.architecture.blocks[0].transposed else moved.T
            assert set(columns.any(1).nonzero()[:, 0].tolist()) == touched[name]
        else:
            assert not bool(moved.any())
    assert bool((lm.weight(0)[:, 0] == 0).all())
    old = before[lm.weight_name(0)].T if lm.layer(0).transposed else before[lm.weight_name(0)]
    assert torch.equal(lm.weight(0)[:, 5], 2 * old[:, 5])
    read.revert(lm)
    assert same(lm, before)


def test_factor_one_is_no_change_and_zero_twice_is_once():
    weight = torch.randn(6, 9)
    assert torch.equal(ScaledColumns.of("w", weight, {2: 1.0, 8: 1.0}).apply_to(weight), weight)
    zero = ScaledColumns.of("w", weight, {2: 0.0})
    assert torch.equal(apply_together(weight, [zero, zero]), zero.apply_to(weight))
    assert torch.equal(zero.apply_to(weight)[:, 2], torch.zeros(6))
    assert zero.norm == pytest.approx(float(weight[:, 2].norm()))
    torch.testing.assert_close(weight + zero.delta(), zero.apply_to(weight))


def test_a_turned_weight_has_its_rows_scaled():
    weight = torch.randn(9, 6)
    update = ScaledColumns.of("w", weight, {4: 3.0}, transposed=True)
    assert update.shape == (9, 6)
    assert torch.equal(update.apply_to(weight)[4], 3 * weight[4])
    torch.testing.assert_close(weight + update.delta(), update.apply_to(weight))


def test_it_scales_what_another_patch_added_and_either_comes_off():
    lm = tiny_lm()
    before = snapshot(lm)
    name = lm.weight_name(1)
    d, m = lm.weight(1).shape
    added = patch_of(lm, LowRank(name, torch.randn(d, 1), torch.randn(1, m)))
    zero = patch_of(lm, scaled(lm, 1, {3: 0.0}))
    added.apply(lm)
    zero.apply(lm)
    assert bool((lm.weight(1)[:, 3] == 0).all())
    added.revert(lm)
    alone = lm.weight(1).clone()
    assert torch.equal(alone, zero.updates[0].apply_to(before[name]))
    zero.revert(lm)
    assert same(lm, before)


def test_diff_knows_shared_neurons_and_that_order_counts():
    lm = tiny_lm()
    one, two = patch_of(lm, scaled(lm, 1, {3: 0.0, 4: 0.0})), patch_of(lm, scaled(lm, 1, {3: 0.0, 9: 0.0}))
    found = one.diff(two)
    assert found.weights[0].rank_a == 2
    assert found.weights[0].overlap == pytest.approx(0.5)
    assert "either order" in found.stacking
    d, m = lm.weight(1).shape
    other = one.diff(patch_of(lm, LowRank(lm.weight_name(1), torch.randn(d, 1), torch.randn(1, m))))
    assert other.order_counts
    assert "order counts" in other.stacking


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_of_it_has_one_rank_a_column(family, tmp_path):
    peft = pytest.importorskip("peft")
    lm = tiny_lm(family)
    made = patch_of(lm, scaled(lm, 1, {3: 0.0, 17: 2.0}))
    assert export_lora(made, lm, tmp_path / "a") == {lm.weight_name(1): 0.0}
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 2
    with made.applied(lm):
        wanted = logits(lm)
    adapted = peft.PeftModel.from_pretrained(tiny(family)[0], tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=IDS).logits, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_patches_by_row_scale_only_their_rows(family):
    lm = tiny_lm(family)
    patches = [patch_of(lm, scaled(lm, 1, {3: 0.0})), patch_of(lm, scaled(lm, 2, {5: 3.0}))]
    rows = [[5, 40, 71], [5, 40, 71], [5, 40, 71]]
    assert groups(lm, patches) == [[0, 1]]
    with applied_by_row(lm, patches):
        found = next_token_logits(lm, rows, tags=[0, 1, -1])
    for row, patch in enumerate(patches):
        with patch.applied(lm):
            torch.testing.assert_close(found[row], next_token_logits(lm, rows)[row], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], next_token_logits(lm, rows)[2], atol=1e-4, rtol=1e-4)


def test_merging_and_showing(tmp_path, capsys):
    lm = tiny_lm()
    made = patch_of(lm, scaled(lm, 1, {3: 0.0}))
    made.merge(tmp_path / "m", lm)
    merged = errata.load(str(tmp_path / "m"))
    assert bool((merged.weight(1)[:, 3] == 0).all())
    made.save_pretrained(tmp_path / "p")
    with pytest.raises(SystemExit) as left:
        run(["show", str(tmp_path / "p")])
    assert left.value.code == 0
    assert "1 x 0" in " ".join(capsys.readouterr().out.split())


def test_refusals_are_one_sentence(tmp_path):
    weight = torch.randn(6, 9)
    good = ScaledColumns.of("w", weight, {2: 0.0}).tensors()
    cases = [
        lambda: ScaledColumns.of("w", weight, {9: 0.0}),
        lambda: ScaledColumns.of("w", weight, {-1: 0.0}),
        lambda: ScaledColumns.of("w", weight, {1: float("nan")}),
        lambda: ScaledColumns("w", torch.tensor([1, 1]), torch.zeros(2), torch.zeros(6, 2), 9),
        lambda: ScaledColumns("w", torch.tensor([1.0]), torch.zeros(1), torch.zeros(6, 1), 9),
        lambda: ScaledColumns("w", torch.tensor([1]), torch.zeros(2), torch.zeros(6, 1), 9),
        lambda: ScaledColumns("w", torch.tensor([10]), torch.zeros(1), torch.zeros(6, 1), 9),
        lambda: ScaledColumns.from_tensors("w", {k: v for k, v in good.items() if k != "before"}),
        lambda: ScaledColumns.from_tensors("w", {**good, "width": torch.tensor([9, 9])}),
    ]
    for call in cases:
        with pytest.raises(PatchError) as error:
            call()
        assert one_sentence(error)
    lm = tiny_lm()
    d, m = lm.weight(1).shape
    mixed = patch_of(lm, LowRank(lm.weight_name(1), torch.randn(d, 1), torch.randn(1, m)), scaled(lm, 1, {3: 0.0}))
    with pytest.raises(PatchError) as error:
        export_lora(mixed, lm, tmp_path / "x")
    assert one_sentence(error)
    assert not (tmp_path / "x").exists()
