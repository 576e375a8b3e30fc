"""UltraEdit: traces against plain autograd, statistics, the solve, and turns that may be interrupted."""

from __future__ import annotations

import pytest
import torch

import errata
from errata.lm import load
from errata.lm.tokens import prompt_ids, target_ids
from errata.methods import get_method
from errata.methods.hypernetworks import ultraedit
from errata.methods.hypernetworks.gradients import answer_traces
from errata.methods.hypernetworks.normaliser import EPSILON, Normaliser
from errata.patch import Patch, applied_patches
from errata.testing import FAMILIES, VARIANTS, tiny
from reference.samples import EDITS, LATE, hooks_on

EDITABLE = tuple(sorted({*FAMILIES, *VARIANTS} - {"mixtral"}))
CONFIG = {"layers": (1, 2), "turn": 2}


def rows(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 3 + 1


@pytest.mark.parametrize("family", EDITABLE)
def test_traces_equal_plain_autograd_one_edit_at_a_time(family):
    lm = load(tiny(family))
    found = answer_traces(lm, EDITS, (0, 1))
    for layer in (0, 1):
        module = lm.out_projection(layer)
        keys, slopes = [], []
        for edit in EDITS:
            prompt, target = prompt_ids(lm.tokenizer, edit.text), target_ids(lm.tokenizer, edit.text, edit.target_new)
            seen = {}

            def keep(_, args, out, seen=seen):
                out.retain_grad()
                seen["x"], seen["y"] = args[0], out

            hook = module.register_forward_hook(keep)
            logits = lm.model(input_ids=torch.tensor([[*prompt, *target[:-1]]])).logits[0]
            hook.remove()
            places = list(range(len(prompt) - 1, len(prompt) - 1 + len(target)))
            torch.nn.functional.cross_entropy(logits[places], torch.tensor(target), reduction="sum").backward()
            keys.append(seen["x"].reshape(-1, seen["x"].shape[-1])[places].detach())
            slopes.append(seen["y"].grad.reshape(-1, seen["y"].shape[-1])[places])
        lm.model.zero_grad()
        assert torch.allclose(found[layer].keys, torch.cat(keys), atol=1e-5)
        assert torch.allclose(found[layer].gradients, torch.cat(slopes), atol=1e-5)
    assert hooks_on(lm.model) == 0


def test_statistics_of_two_batches_are_those_of_both_together():
    one, two = rows(7, 5), rows(11, 5, seed=1)
    both = torch.cat([one, two]).double()
    found = Normaliser.empty(5).seen(one).seen(two)
    assert found.count == 18
    expected = (both - both.mean(0)) / (both.std(0) + EPSILON)
    assert torch.allclose(found(both), expected)
    again = Normaliser.of_tensors(found.tensors())
    assert torch.equal(again(both), found(both))


def test_one_row_has_no_spread_and_gives_no_nan():
    assert torch.isfinite(Normaliser.empty(4).seen(rows(1, 4))(rows(1, 4))).all()


def test_the_update_is_the_papers_formula():
    lm = load(tiny("llama"))
    (patch,) = [errata.edit(lm, EDITS, method="ultraedit", config={"layers": (1,), "ridge": 0.3, "warm": 0})]
    trace = answer_traces(lm, EDITS, (1,))[1]
    H, G = trace.keys.double(), trace.gradients.double()
    keys, slopes = ((x - x.mean(0)) / (x.std(0) + EPSILON) for x in (H, G))
    V = -keys.square().sum(1, keepdim=True) * slopes
    V *= 0.5 * trace.outputs.double().norm(dim=1).mean() / V.norm(dim=1).mean()
    ridge = 0.3 * H.square().sum(1).mean()
    expected = torch.linalg.solve(H.T @ H + ridge * torch.eye(H.shape[1], dtype=torch.float64), H.T @ V).T
    found = patch.updates[0].delta().double()
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("family", EDITABLE)
def test_answers_become_likelier_and_the_model_is_left_alone(family):
    lm = load(tiny(family))
    was = lm.fingerprint()
    pairs = [(edit.text, edit.target_new) for edit in LATE]
    before = sum(s.total for s in errata.lm.score(lm, pairs))
    patch = errata.edit(lm, LATE, method="ultraedit", config={"layers": (1,), "step": 2.0, "ridge": 0.01})
    assert lm.fingerprint() == was
    with patch.applied(lm):
        assert sum(s.total for s in errata.lm.score(lm, pairs)) > before
    assert lm.fingerprint() == was


def test_turns_of_one_call_equal_calls_one_after_another():
    lm = load(tiny("gpt2"))
    whole = errata.edit(lm, EDITS, method="ultraedit", config=CONFIG)
    for edits in (EDITS[:2], EDITS[2:]):
        errata.edit(lm, edits, method="ultraedit", config=CONFIG).apply(lm)
    steps = applied_patches(lm)
    for i, update in enumerate(whole.updates):
        total = steps[0].updates[i].delta() + steps[1].updates[i].delta()
        assert float((update.delta() - total).norm() / total.norm()) < 1e-5


def test_a_sequence_that_begins_with_one_edit_takes_its_scale_from_shipped_ones():
    lm = load(tiny("llama"))
    rates = [
        float(errata.edit(lm, edit, method="ultraedit", config={"layers": (1,)}).state["ultraedit.1.rate"])
        for edit in EDITS
    ]
    assert max(rates) / min(rates) < 1.05
    alone = [
        float(errata.edit(lm, edit, method="ultraedit", config={"layers": (1,), "warm": 0}).state["ultraedit.1.rate"])
        for edit in EDITS
    ]
    assert max(alone) > 2 * max(rates)  # what the shipped ones are for


@pytest.mark.parametrize("warm", [0, 8])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch, warm):
    lm = load(tiny("llama"))
    config = {**CONFIG, "warm": warm}
    whole = errata.edit(lm, EDITS, method="ultraedit", config=config)
    calls = []
    original = ultraedit.answer_traces

    def killed(*args):
        calls.append(1)
        if len(calls) == (3 if warm else 2):
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(ultraedit, "answer_traces", killed)
    with pytest.raises(KeyboardInterrupt):
        errata.edit(lm, EDITS, method="ultraedit", config=config, resume=tmp_path)
    calls.append(1)  # the next calls go through
    resumed = errata.edit(lm, EDITS, method="ultraedit", config=config, resume=tmp_path)
    assert len(calls) == (5 if warm else 4)
    assert resumed.digest == whole.digest
    other = errata.edit(lm, EDITS[::-1], method="ultraedit", config=config, resume=tmp_path)
    assert other.digest != whole.digest


def test_the_patch_is_kept_and_read_back(tmp_path):
    lm = load(tiny("gpt2"))
    patch = errata.edit(lm, EDITS, method="ultraedit", config=CONFIG)
    patch.save_pretrained(tmp_path / "patch")
    assert Patch.from_pretrained(tmp_path / "patch").digest == patch.digest
    left = patch.without(EDITS[0], lm=lm)
    assert left.edits == list(EDITS[1:])


def test_its_layers_lie_above_the_middle():
    lm = load(tiny("llama", layers=10))
    assert get_method("ultraedit").layers(lm, get_method("ultraedit").configure()) == [4, 5, 6, 7, 8]
