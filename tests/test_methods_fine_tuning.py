"""Fine-tuning editors: the loop is the plain one, only faster, and the model is left as it was."""

from __future__ import annotations

import builtins
import sys
from functools import cache

import pytest
import torch

import errata
from errata.errors import ArchitectureError, ConfigError, ErrataError, NumericalError, RequestError
from errata.lm import load, score
from errata.lm.forward import supports_splitting
from errata.methods import get_method
from errata.methods.fine_tuning import one_matrix, passes
from errata.methods.fine_tuning.config import block_modules
from errata.methods.fine_tuning.examples import examples_of
from errata.methods.fine_tuning.training import train
from errata.methods.fine_tuning.weights import MatrixChanges
from errata.methods.layers import layer_at
from errata.patch import Dense, LowRank, Patch, applied_patches
from errata.records import Edit
from errata.testing import FAMILIES, VARIANTS, tiny, tiny_tokenizer
from reference.odd_model import odd_model
from reference.plain_model import plain_logits
from reference.plain_training import plain_lora, plain_training
from reference.samples import EDITS, LATE, hooks_on, one_sentence

ONE_MATRIX = ("ft", "ft-l", "ft-m")
METHODS = (*ONE_MATRIX, "lora")
EDITABLE = tuple(sorted({*FAMILIES, *VARIANTS} - {"mixtral"}))

# Random weights need more than a trained model's steps of 5e-4.
STRONG = {
    "ft": {"steps": 60, "learning_rate": 0.05},
    "ft-l": {"steps": 60, "learning_rate": 0.05, "relative_epsilon": 5.0},
    "ft-m": {"steps": 60, "learning_rate": 0.05},
    "lora": {"steps": 60, "learning_rate": 0.02},
}
QUICK = {name: {**config, "steps": 3} for name, config in STRONG.items()}


@cache
def wide(family, layers=4):
    """In float64, where the fast path and the plain one differ by less than Adam's division can enlarge."""
    if family == "odd":
        return load((odd_model().double(), tiny_tokenizer()))
    return load(tiny(family, dtype=torch.float64, layers=layers))


def state(lm):
    model = lm.model
    return {
        "weights": lm.fingerprint(),
        "names": [name for name, _ in model.named_modules()],
        "modules": [id(module) for module in model.modules()],
        "attributes": sorted(vars(model)),
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad is None for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": hooks_on(model),
        "random": torch.get_rng_state().tolist(),
    }


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def correct(lm, edits):
    return [all(s.correct) for s in score(lm, [(e.text, e.target_new) for e in edits])]


def losses(patch):
    return [note["loss"] for note in patch.card.notes["edits"]]


# --- every family and method ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", EDITABLE)
def test_the_target_becomes_the_likeliest_and_the_model_stays_as_it_was(family, method, tmp_path):
    lm = load(tiny(family))
    lm.model.get_input_embeddings().weight.requires_grad_(False)
    was, edit = state(lm), LATE[1]
    assert correct(lm, [edit]) == [False]
    # Low, because in a random model a norm after the MLP bounds what one layer can still do from further up.
    place = {} if method == "lora" else {"layer": 1}
    patch = errata.edit(lm, edit, method=method, config={**STRONG[method], **place})
    assert state(lm) == was
    patch.save_pretrained(tmp_path / "patch")
    again = Patch.from_pretrained(tmp_path / "patch")
    with again.applied(lm):
        assert correct(lm, [edit]) == [True]
    assert state(lm)["weights"] == was["weights"]
    if method != "lora":
        assert [update.parameter for update in patch.updates] == [lm.weight_name(1)]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_no_known_family_is_edited(method):
    lm = load((odd_model(), tiny_tokenizer()))
    was = state(lm)
    patch = errata.edit(lm, LATE[1], method=method, config=STRONG[method])
    assert state(lm) == was
    with patch.applied(lm):
        assert correct(lm, LATE[1:2]) == [True]


@pytest.mark.parametrize("method", METHODS)
def test_many_edits_are_learnt_together(method):
    lm = load(tiny("llama"))
    config = {**STRONG[method], "batch_size": 2, "steps": 120}
    patch = errata.edit(lm, LATE, method=method, config=config)
    assert len(losses(patch)) == len(LATE)
    with patch.applied(lm):
        assert correct(lm, LATE) == [True] * len(LATE)


@pytest.mark.parametrize("method", ["ft-m", "lora"])
def test_targets_of_several_tokens_are_learnt_whole(method):
    lm = load(tiny("gpt2"))
    patch = errata.edit(lm, EDITS, method=method, config={**STRONG[method], "steps": 150})
    with patch.applied(lm):
        assert correct(lm, EDITS) == [True] * len(EDITS)


def test_asking_the_prompts_end_for_several_tokens_does_not_teach_the_target():
    lm = load(tiny("gpt2"))
    edit = EDITS[2]
    patch = errata.edit(lm, edit, method="ft", config=STRONG["ft"])
    count = len(examples_of(lm, [edit], "prompt-last")[0].wanted)
    assert count > 1
    # The best one distribution can do for n different tokens is 1/n each.
    assert losses(patch)[0] >= torch.tensor(float(count)).log() - 1e-4
    with patch.applied(lm):
        assert correct(lm, [edit]) == [False]
    whole = errata.edit(lm, edit, method="ft", config={**STRONG["ft"], "objective": "target"})
    with whole.applied(lm):
        assert correct(lm, [edit]) == [True]


# --- the same as the plain loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["prompt-last", "target"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "gptj", "opt", "odd"])
def test_the_fast_loop_equals_the_plain_one(family, objective):
    lm = wide(family)
    config = {"steps": 5, "learning_rate": 0.01, "objective": objective, "layer": 1}
    patch = errata.edit(lm, EDITS, method="ft", config=config)
    name = lm.weight_name(1)
    model, trace = plain_training(lm.model, lm.tokenizer, EDITS, name, objective=objective, steps=5, learning_rate=0.01)
    expected = model.get_parameter(name) - lm.model.get_parameter(name).detach()
    assert relative(patch.updates[0].delta(), expected) < 1e-5
    assert losses(patch) == pytest.approx(trace[-1], abs=1e-5)


@pytest.mark.parametrize("family", EDITABLE)
def test_every_family_in_float32_has_the_plain_losses(family):
    lm = load(tiny(family))
    patch = errata.edit(lm, EDITS[:2], method="ft-m", config={"steps": 3, "learning_rate": 0.01, "layer": 2})
    _, trace = plain_training(
        lm.model, lm.tokenizer, EDITS[:2], lm.weight_name(2), objective="target", steps=3, learning_rate=0.01
    )
    assert losses(patch) == pytest.approx(trace[-1], abs=1e-3)


@pytest.mark.parametrize("layer", [0, 3])
def test_the_first_and_the_last_layer(layer):
    lm = wide("llama")
    patch = errata.edit(lm, EDITS[:2], method="ft-m", config={"steps": 4, "learning_rate": 0.01, "layer": layer})
    name = lm.weight_name(layer)
    model, _ = plain_training(lm.model, lm.tokenizer, EDITS[:2], name, objective="target", steps=4, learning_rate=0.01)
    assert relative(patch.updates[0].delta(), model.get_parameter(name) - lm.model.get_parameter(name).detach()) < 1e-5


@pytest.mark.parametrize("change", [{"epsilon": 0.015}, {"weight_decay": 0.3}, {"stop_loss": 6.2}])
def test_each_knob_means_what_it_means_in_the_plain_loop(change):
    lm = wide("gpt2")
    config = {"steps": 8, "learning_rate": 0.01, "layer": 1, "objective": "target"}
    patch = errata.edit(lm, EDITS[:2], method="ft-l", config={**config, "epsilon": 1e9, "stop_loss": 0.0, **change})
    name = lm.weight_name(1)
    model, trace = plain_training(
        lm.model, lm.tokenizer, EDITS[:2], name, objective="target", steps=8, learning_rate=0.01, **change
    )
    assert relative(patch.updates[0].delta(), model.get_parameter(name) - lm.model.get_parameter(name).detach()) < 1e-5
    assert patch.card.notes["edits"][0]["steps"] == len(trace)
    if "stop_loss" in change:
        assert 1 < len(trace) < 8


def test_mini_batches_see_every_edit_once_a_pass_in_an_order_of_the_seed():
    lm = wide("llama")
    config = {"steps": 1, "learning_rate": 0.01, "layer": 1}
    by_seed = [
        errata.edit(lm, LATE, method="ft-m", config={**config, "batch_size": 1, "seed": seed}).updates[0].delta()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(by_seed[0], by_seed[1])
    assert not torch.allclose(by_seed[0], by_seed[2])
    whole = errata.edit(lm, LATE, method="ft-m", config={**config, "batch_size": 4})
    larger = errata.edit(lm, LATE, method="ft-m", config={**config, "batch_size": 64})
    assert relative(whole.updates[0].delta(), larger.updates[0].delta()) < 1e-5


# --- what makes it fast is exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_what_lies_below_the_trained_layer_is_computed_once(family, monkeypatch):
    lm = wide(family)
    config = {"steps": 4, "learning_rate": 0.01, "layer": 2}
    assert supports_splitting(lm)  # checks the model by passes of its own, once
    below, above = [], []
    places = [(lm.architecture.blocks[0].attention, below), (lm.architecture.blocks[3].attention, above)]
    handles = [
        lm.model.get_submodule(path).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        for path, seen in places
    ]
    fast = errata.edit(lm, EDITS, method="ft-m", config=config)
    for handle in handles:
        handle.remove()
    assert (len(below), len(above)) == (1, 4)
    monkeypatch.setattr(passes, "KEPT_BYTES", 0)
    slow = errata.edit(lm, EDITS, method="ft-m", config=config)
    assert relative(fast.updates[0].delta(), slow.updates[0].delta()) < 1e-9
    assert losses(fast) == pytest.approx(losses(slow), abs=1e-9)


def test_the_measuring_pass_may_take_several_batches(monkeypatch):
    lm = wide("llama")
    config = {"steps": 2, "learning_rate": 0.01, "layer": 2}
    once = errata.edit(lm, EDITS, method="ft-m", config=config)
    monkeypatch.setattr(passes, "ROWS_AT_ONCE", 3)
    assert relative(
        errata.edit(lm, EDITS, method="ft-m", config=config).updates[0].delta(), once.updates[0].delta()
    ) < (1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("together", [1 << 28, 1])
def test_each_alone_is_what_solving_each_gives(method, together, monkeypatch):
    monkeypatch.setattr(one_matrix, "SIDE_BY_SIDE_BYTES", together)
    lm = wide("llama")
    chosen = get_method(method)
    config = chosen.configure({**STRONG[method], "steps": 12, "learning_rate": 0.02, "stop_loss": 2.0})
    edits = [*EDITS, EDITS[1]]
    was = state(lm)
    patches = chosen.solve_each(lm, edits, config)
    assert state(lm) == was
    steps = [patch.card.notes["edits"][0]["steps"] for patch in patches]
    assert len(set(steps)) > 1  # they stop at different steps, without disturbing each other
    for edit, patch in zip(edits, patches, strict=True):
        alone = chosen.solve(lm, [edit], config)
        assert patch.edits == [edit]
        assert patch.card.config == alone.card.config
        assert patch.card.notes["edits"][0]["steps"] == alone.card.notes["edits"][0]["steps"]
        for found, expected in zip(patch.updates, alone.updates, strict=True):
            assert relative(found.delta(), expected.delta()) < 1e-5


# --- the constraint and the objectives ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"epsilon": 0.004}, {"relative_epsilon": 0.03}])
def test_no_entry_leaves_its_interval(options):
    lm = load(tiny("llama"))
    patch = errata.edit(lm, LATE, method="ft-l", config={**STRONG["ft-l"], **options})
    change = patch.updates[0].delta()
    epsilon = patch.card.notes["epsilon"]
    if "epsilon" in options:
        assert epsilon == options["epsilon"]
    else:
        weight = lm.weight(patch.card.config["layer"])
        assert epsilon == pytest.approx(0.03 * float(weight.square().mean().sqrt()), rel=1e-5)
    assert bool((change.abs() <= torch.tensor(epsilon)).all())
    assert float(change.abs().max()) > 0.99 * epsilon  # it is held there by the constraint, not by chance


def test_the_two_objectives_agree_on_a_target_of_one_token():
    lm = load(tiny("llama"))
    first, second = (errata.edit(lm, LATE[0], method=m, config=QUICK["ft-m"]) for m in ("ft", "ft-m"))
    assert torch.equal(first.updates[0].delta(), second.updates[0].delta())


def test_the_prompts_own_tokens_are_no_target():
    lm = load(tiny("llama"))
    (example,) = examples_of(lm, EDITS[2:3], "target")
    prompt = len(errata.lm.tokens.prompt_ids(lm.tokenizer, EDITS[2].text))
    assert [column for column, _ in example.wanted] == list(range(prompt - 1, len(example.ids)))
    assert all(token == after for (_, token), after in zip(example.wanted, example.ids[prompt:], strict=False))


def test_a_padded_batch_has_the_losses_of_its_rows():
    lm = wide("gpt2")
    examples = examples_of(lm, EDITS, "target")
    together = passes.Passes(lm, examples, 2).losses(range(len(EDITS)))
    alone = [float(passes.Passes(lm, [example], 2).losses([0])) for example in examples]
    assert together.tolist() == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_that_is_learnt_already_changes_nothing(method):
    lm = load(tiny("gpt2"))
    patch = errata.edit(lm, EDITS, method=method, config={**STRONG[method], "stop_loss": 1e9})
    assert patch.card.notes["edits"][0]["steps"] == 1
    assert not any(update.delta().any() for update in patch.updates)


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_asked_twice_counts_once(method):
    lm = wide("llama")
    once = errata.edit(lm, LATE[:2], method=method, config=QUICK[method])
    twice = errata.edit(lm, [*LATE[:2], LATE[0]], method=method, config=QUICK[method])
    assert len(twice.edits) == 3
    assert losses(twice)[2] == losses(twice)[0]
    for first, second in zip(once.updates, twice.updates, strict=True):
        assert torch.equal(first.delta(), second.delta())


# --- bfloat16 and sequences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_bfloat16_model_is_trained_in_float32(family, method):
    lm = load(tiny(family, dtype=torch.bfloat16))
    was = state(lm)
    patch = errata.edit(lm, LATE[1], method=method, config=STRONG[method])
    assert state(lm) == was
    assert all(t.dtype == torch.float32 for update in patch.updates for t in update.tensors().values())
    with patch.applied(lm):
        assert lm.weight(1).dtype == torch.bfloat16
        assert correct(lm, LATE[1:2]) == [True]


def test_steps_below_the_resolution_of_bfloat16_add_up():
    lm = load(tiny("llama", dtype=torch.bfloat16))
    patch = errata.edit(lm, LATE[1], method="ft-m", config={"steps": 20, "learning_rate": 1e-4})
    assert float(patch.updates[0].delta().abs().max()) > 1e-3  # 20 steps that bfloat16 would each have dropped at 0.2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_in_bfloat16_computes_with_what_the_patched_weight_will_hold(family):
    lm = load(tiny(family, dtype=torch.bfloat16))
    weights = MatrixChanges(lm, 2, 1)
    with weights.installed():
        weights.tensors(0)[0].data.normal_(std=1e-3)
        held = weights._held(0).detach()
        (update,) = weights.updates(0)
    weight = lm.model.get_parameter(update.parameter).detach()
    written = update.apply_to(weight).float() - weight.float()
    torch.testing.assert_close(held, written if lm.layer(2).transposed else written.T, atol=1e-7, rtol=0)
    assert relative(written, update.delta()) > 0.05  # rounding takes its share, and training knows of it


@pytest.mark.parametrize("method", METHODS)
def test_edits_in_a_sequence_build_on_the_earlier_ones(method):
    lm = load(tiny("llama"))
    bare = lm.fingerprint()
    first = errata.edit(lm, LATE[0], method=method, config=STRONG[method])
    with first.applied(lm):
        carried = lm.fingerprint()
        second = errata.edit(lm, LATE[1], method=method, config=STRONG[method])
        assert lm.fingerprint() == carried
        assert second.card.base.fingerprint == carried
        fresh = load(tiny("llama"))
        alone = errata.edit(fresh, LATE[1], method=method, config=STRONG[method])
        assert not torch.allclose(second.updates[0].delta(), alone.updates[0].delta())
        with second.applied(lm):
            assert correct(lm, LATE[1:2]) == [True]
    assert lm.fingerprint() == bare


# --- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "falcon", "opt"])
def test_the_lora_patch_says_what_the_peft_model_says(family):
    lm = wide(family)
    config = {"steps": 6, "learning_rate": 0.01, "rank": 3, "alpha": 6.0, "targets": ("attention", "mlp"), "seed": 3}
    config |= {"layers": tuple(range(lm.num_layers))}
    patch = errata.edit(lm, EDITS, method="lora", config=config)
    paths = [path for layer in range(lm.num_layers) for path in block_modules(lm, layer, ("attention", "mlp"))]
    adapted, trace = plain_lora(
        lm.model, lm.tokenizer, EDITS, paths, rank=3, alpha=6.0, steps=6, learning_rate=0.01, seed=3
    )
    assert losses(patch) == pytest.approx(trace[-1], abs=1e-5)
    assert {update.parameter for update in patch.updates} == {f"{path}.weight" for path in paths}
    with torch.no_grad(), patch.applied(lm):
        for edit in EDITS:
            ids = examples_of(lm, [edit], "target")[0].ids
            torch.testing.assert_close(plain_logits(lm.model, ids), plain_logits(adapted, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_lora_patch_is_exported_as_an_adapter(family, tmp_path):
    from peft import PeftModel

    lm = load(tiny(family))
    patch = errata.edit(lm, LATE[1], method="lora", config=QUICK["lora"])
    assert all(isinstance(update, LowRank) and update.rank == 8 for update in patch.updates)
    patch.to_lora(tmp_path / "adapter", lm)
    ids = examples_of(lm, LATE[1:2], "target")[0].ids
    with torch.no_grad():
        with patch.applied(lm):
            expected = plain_logits(lm.model, ids)
        adapted = PeftModel.from_pretrained(tiny(family)[0], tmp_path / "adapter")
        torch.testing.assert_close(plain_logits(adapted, ids), expected, atol=1e-4, rtol=1e-4)


def test_the_matrices_are_named_by_the_map_or_by_their_modules():
    lm = load(tiny("llama"))
    block = lm.architecture.blocks[1].path
    assert block_modules(lm, 1, ("attention",)) == [f"{block}.self_attn.{n}_proj" for n in "qkvo"]
    assert block_modules(lm, 1, ("mlp",)) == [f"{block}.mlp.{n}_proj" for n in ("gate", "up", "down")]
    assert block_modules(lm, 1, ("v_proj", "q_proj")) == [f"{block}.self_attn.{n}_proj" for n in "qv"]
    assert len(block_modules(lm, 1, ("attention", "mlp", "q_proj"))) == 7
    for family in EDITABLE:
        lm = load(tiny(family))
        parts = [block_modules(lm, 0, (part,)) for part in ("attention", "mlp")]
        assert lm.architecture.blocks[0].attention_output in parts[0]
        assert lm.architecture.blocks[0].out_projection in parts[1]
        assert not set(parts[0]) & set(parts[1])


def test_only_the_named_layers_and_matrices_are_adapted():
    lm = load(tiny("llama"))
    config = {**QUICK["lora"], "layers": (3, 1), "targets": ("q_proj",)}
    patch = errata.edit(lm, LATE[0], method="lora", config=config)
    assert [u.parameter for u in patch.updates] == [f"model.layers.{i}.self_attn.q_proj.weight" for i in (1, 3)]
    assert patch.card.config["layers"] == [1, 3]


def test_dropout_is_drawn_from_the_seed_and_leaves_the_global_state_alone():
    lm = load(tiny("llama"))
    was = state(lm)
    config = {**QUICK["lora"], "dropout": 0.3}
    found = [errata.edit(lm, LATE[0], method="lora", config={**config, "seed": s}).updates for s in (0, 0, 1)]
    plain = errata.edit(lm, LATE[0], method="lora", config=QUICK["lora"]).updates
    assert state(lm) == was
    assert torch.equal(found[0][0].delta(), found[1][0].delta())
    assert not torch.allclose(found[0][0].delta(), found[2][0].delta())
    assert not torch.allclose(found[0][0].delta(), plain[0].delta())


def test_the_attention_of_a_mixture_of_experts_is_adapted_and_its_mlp_refused():
    lm = load(tiny("mixtral"))
    patch = errata.edit(lm, LATE[1], method="lora", config={**STRONG["lora"], "targets": ("attention",)})
    with patch.applied(lm):
        assert correct(lm, LATE[1:2]) == [True]
    with pytest.raises(ArchitectureError, match="mixture of experts") as error:
        errata.edit(lm, LATE[1], method="lora", config={"targets": ("mlp",)})
    assert one_sentence(error)


def test_without_peft_one_sentence_names_the_extra(monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **options):
        if name.partition(".")[0] == "peft":
            raise ImportError(name)
        return original(name, *args, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    assert get_method("lora").info.title == "LoRA"  # the method can be listed and described
    lm = load(tiny("llama"))
    with pytest.raises(ErrataError, match=r"pip install 'errata\[lora\]'") as error:
        errata.edit(lm, LATE[0], method="lora")
    assert one_sentence(error)


# --- what can go wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("each", [False, True])
def test_an_interruption_leaves_the_model_as_it_was(method, error, each, monkeypatch):
    lm = load(tiny("gpt2"))
    was = state(lm)
    original, calls = torch.optim.Adam.step, []

    def failing(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", failing)
    chosen = get_method(method)
    with pytest.raises(error):
        (chosen.solve_each if each else chosen.solve)(lm, LATE[:2], chosen.configure(QUICK[method]))
    assert len(calls) == 2
    assert state(lm) == was
    assert applied_patches(lm) == ()


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_no_numbers_give_one_sentence(method):
    lm = load(tiny("llama"))
    with torch.no_grad():
        lm.model.model.layers[3].mlp.down_proj.weight[0, 0] = float("nan")
    was = state(lm)
    with pytest.raises(NumericalError, match="not a number") as error:
        errata.edit(lm, LATE[0], method=method, config=QUICK[method])
    assert one_sentence(error)
    assert state(lm) == was


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_explodes_is_noticed(method):
    lm = load(tiny("gpt2"))
    was = state(lm)
    options = {"epsilon": 1e38} if method == "ft-l" else {}
    with pytest.raises(NumericalError) as error:
        errata.edit(lm, LATE[0], method=method, config={"learning_rate": 1e30, "steps": 5, **options})
    assert one_sentence(error)
    assert state(lm) == was


def test_a_last_step_that_no_loss_shows_is_checked_too():
    lm = load(tiny("llama"))
    config = get_method("ft-m").configure({"steps": 1})
    with pytest.raises(NumericalError, match="a trained weight") as error:
        train(lm, MatrixChanges(lm, 1, 1), [examples_of(lm, LATE, "target")], config, lambda c: c.fill_(torch.nan))
    assert one_sentence(error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same(method, without):
    lm = load(tiny("gpt2"))
    expected = errata.edit(lm, LATE[0], method=method, config=QUICK[method])
    with without():
        found = errata.edit(lm, LATE[0], method=method, config=QUICK[method])
    assert torch.equal(found.updates[-1].delta(), expected.updates[-1].delta())
    assert found.digest == expected.digest


def test_the_layer_is_a_fraction_of_depth_and_may_be_the_last():
    lm = load(tiny("llama", layers=9))
    assert [layer_at(lm, depth, last=True) for depth in (0.0, 0.5, 1.0)] == [0, 4, 8]
    chosen = get_method("ft-m")
    assert chosen.layers(lm, chosen.configure({"depth": 1.0})) == [8]
    assert chosen.layers(lm, chosen.configure({"layer": 3})) == [3]
    assert chosen.layers(lm, chosen.configure({})) == [0]
    lora = get_method("lora")
    for options, layers in [
        ({}, [0, 1, 2]),
        ({"depth": 0.5, "span": 2}, [3, 4]),
        ({"depth": 1.0, "span": 99}, list(range(9))),
        ({"layers": (5, 0, 5)}, [0, 5]),
    ]:
        assert lora.layers(lm, lora.configure(options)) == layers


@pytest.mark.parametrize(
    ("method", "options", "error", "words"),
    [
        ("ft", {"layer": 99}, ArchitectureError, "There is no layer 99"),
        ("lora", {"layers": (0, 99)}, ArchitectureError, "There is no layer 99"),
        ("lora", {"targets": ("q_prj",)}, ConfigError, "no matrix 'q_prj'"),
        ("ft", {"epsilon": 0.1}, ConfigError, "has no option 'epsilon'"),
        ("ft-m", {"objective": "target"}, ConfigError, "has no option 'objective'"),
        ("ft", {"objective": "all"}, ConfigError, "objective"),
        ("ft-l", {"epsilon": 0.0}, ConfigError, "epsilon"),
        ("lora", {"rank": 0}, ConfigError, "rank"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(method, options, error, words):
    lm = load(tiny("llama"))
    was = state(lm)
    with pytest.raises(error, match=words) as raised:
        errata.edit(lm, LATE[0], method=method, config=options)
    assert one_sentence(raised)
    assert state(lm) == was


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_too_long_for_the_model_is_refused(method):
    lm = load(tiny("llama"))
    edit = Edit(prompt="the " * 300 + "{} is", subject="Rome", target_new="city")
    with pytest.raises(RequestError, match="shorten it") as error:
        errata.edit(lm, edit, method=method)
    assert one_sentence(error)


@pytest.mark.parametrize("method", ONE_MATRIX)
def test_a_mixture_of_experts_is_refused(method):
    with pytest.raises(ArchitectureError, match="mixture of experts"):
        errata.edit(load(tiny("mixtral")), LATE[0], method=method)


@pytest.mark.parametrize("method", METHODS)
def test_the_method_describes_itself(method):
    info = get_method(method).info
    assert info.name == method
    assert info.strategy == "global optimisation"
    assert all(field.description for field in get_method(method).Config.model_fields.values())


def test_a_constraint_of_ones_own_is_a_function():
    lm = load(tiny("llama"))
    weights = MatrixChanges(lm, 1, 1)
    config = get_method("ft-m").configure(QUICK["ft-m"])
    train(lm, weights, [examples_of(lm, LATE, "target")], config, constraint=lambda change: change[:, 3:].zero_())
    (update,) = weights.updates(0)
    assert isinstance(update, Dense)
    assert update.change[:, :3].any()
    assert not update.change[:, 3:].any()
