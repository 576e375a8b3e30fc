"""Split, restarted, shifted and stopped passes equal plain full ones on every family, and hooks never stay behind."""

from __future__ import annotations

import pytest
import torch

from errata.lm import load, score
from errata.lm.activations import capture, evaluating, frozen, gathered, replace, skipping, stop_at
from errata.lm.forward import SplitBatch, add_at, next_token_logits, supports_splitting
from errata.testing import FAMILIES, VARIANTS, tiny, tiny_tokenizer
from reference.odd_model import odd_model
from reference.plain_model import adding, plain_logits, seen_at
from reference.samples import hooks_on

ALL = (*FAMILIES, *VARIANTS)
LENGTHS, SPLITS = (9, 6, 4, 12, 1, 7), (5, 0, 3, 11, 0, 2)
LONG, LONG_SPLITS = (90, 75, 20), (80, 3, 10)  # beyond the 64 tokens that some layers look back


def rows_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 512, (n,), generator=generator).tolist() for n in lengths]


def by_row(lm, rows, splits, logits):
    """(fast, plain) logits of each row at its real positions right of the split."""
    with torch.no_grad():
        plain = [plain_logits(lm.model, row)[split:] for row, split in zip(rows, splits, strict=True)]
    return [(logits[i, : len(p)], p) for i, p in enumerate(plain)]


def assert_rows_equal(lm, rows, splits, logits):
    for fast, plain in by_row(lm, rows, splits, logits):
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


# --- the same numbers as a plain pass -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_every_family_supports_splitting(family):
    assert supports_splitting(load(tiny(family)))


@pytest.mark.parametrize(
    ("lengths", "splits"), [(LENGTHS, SPLITS), (LONG, LONG_SPLITS), ((8, 8), (5, 5)), ((7, 7), (6, 6))]
)
@pytest.mark.parametrize("family", ALL)
def test_a_split_pass_gives_the_logits_of_a_plain_one(family, lengths, splits):
    lm, rows = load(tiny(family)), rows_of(lengths)
    batch = SplitBatch(lm, rows, splits)
    assert batch.splits == list(splits)
    for _ in range(2):  # the second pass must not see what the first left in the cache
        with torch.no_grad():
            logits, _ = batch.run()
        assert logits.shape[1] == max(n - s for n, s in zip(lengths, splits, strict=True))
        assert_rows_equal(lm, rows, splits, logits)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "mistral"])
def test_both_attention_kernels(family, kernel):
    lm, rows = load(tiny(family, attn_implementation=kernel)), rows_of(LENGTHS)
    with torch.no_grad():
        logits, _ = SplitBatch(lm, rows, SPLITS).run()
    assert_rows_equal(lm, rows, SPLITS, logits)


@pytest.mark.parametrize("family", ALL)
def test_a_row_alone_equals_the_row_in_a_batch(family):
    lm, rows = load(tiny(family)), rows_of(LENGTHS)
    together = next_token_logits(lm, rows)
    alone = torch.cat([next_token_logits(lm, [row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", [1, 2, 3])
@pytest.mark.parametrize("family", ALL)
def test_a_pass_from_a_stored_state_equals_the_whole(family, start):
    lm, rows = load(tiny(family)), rows_of(LENGTHS)
    batch = SplitBatch(lm, rows, SPLITS)
    entry = lm.architecture.blocks[start].path
    with torch.no_grad():
        _, seen = batch.run(inputs=[entry], stop=entry, stop_before=True)
        logits, _ = batch.run(start=start, hidden=seen.inputs[entry])
    assert_rows_equal(lm, rows, SPLITS, logits)


@pytest.mark.parametrize("family", ALL)
def test_logits_at_chosen_positions_only(family):
    lm, rows = load(tiny(family)), rows_of(LENGTHS)
    batch = SplitBatch(lm, rows, SPLITS)
    where = torch.tensor([3, 0, 0, 5]), torch.tensor([0, 3, 1, 4])
    with torch.no_grad():
        picked, _ = batch.run(at=where)
    expected = [plain_logits(lm.model, rows[r])[SPLITS[r] + c] for r, c in zip(*where, strict=True)]
    torch.testing.assert_close(picked, torch.stack(expected), atol=1e-4, rtol=1e-4)


def out_projection(lm, layer):
    return lm.layer(layer).out_projection


@pytest.mark.parametrize("site", ["out_projection", "block"])
@pytest.mark.parametrize("family", sorted(set(ALL) - {"mixtral"}))
def test_a_shift_and_its_gradient_equal_a_hook_on_a_plain_pass(family, site):
    lm, rows = load(tiny(family)), rows_of(LENGTHS)
    path = lm.layer(1).out_projection if site == "out_projection" else lm.layer(1).path
    positions = [max(s, n - 2) for n, s in zip(LENGTHS, SPLITS, strict=True)]
    start = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(3))
    batch = SplitBatch(lm, rows, SPLITS)
    columns = torch.tensor([batch.column(i, p) for i, p in enumerate(positions)])
    last = torch.arange(len(rows)), torch.tensor([batch.column(i, n - 1) for i, n in enumerate(LENGTHS)])
    with frozen(lm.model):
        values = start.clone().requires_grad_()
        logits, _ = batch.run(shift=(path, columns, values), at=last)
        logits.log_softmax(-1)[:, 7].sum().backward()
        plain = start.clone().requires_grad_()
        for i, row in enumerate(rows):
            with adding(lm.model, path, positions[i], plain[i]):
                alone = plain_logits(lm.model, row)[-1]
            torch.testing.assert_close(logits[i], alone, atol=2e-4, rtol=1e-4)
            alone.log_softmax(-1)[7].backward()
    torch.testing.assert_close(values.grad, plain.grad, atol=1e-4, rtol=1e-3)
    assert values.grad.abs().amin(-1).max() > 1e-3


@pytest.mark.parametrize("family", sorted(set(ALL) - {"mixtral"}))
def test_captured_states_are_those_of_a_plain_pass(family):
    lm, rows = load(tiny(family)), rows_of(LENGTHS)
    batch = SplitBatch(lm, rows, SPLITS)
    block, out = lm.layer(2).path, out_projection(lm, 2)
    with torch.no_grad():
        logits, seen = batch.run(inputs=[out, block], outputs=[out, block], stop=block)
    assert logits is None
    for i, row in enumerate(rows):
        for path in (out, block):
            key, value = seen_at(lm.model, row, path, len(row) - 1)
            at = i, batch.column(i, len(row) - 1)
            shape = batch.ids.shape
            torch.testing.assert_close(seen.inputs[path].reshape(*shape, -1)[at], key, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(seen.outputs[path].reshape(*shape, -1)[at], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma3", "mixtral", "falcon", "bloom"])
def test_selecting_and_branching(family):
    lm, rows = load(tiny(family)), rows_of(LENGTHS)
    batch = SplitBatch(lm, rows, SPLITS)
    keep = [4, 0, 3]
    with torch.no_grad():
        logits, _ = batch.select(keep).run()
    assert_rows_equal(lm, [rows[i] for i in keep], [SPLITS[i] for i in keep], logits)
    parents, more = [2, 2, 0, 1], [[9, 8, 7], [], [10], [11, 12]]
    with torch.no_grad():
        branch = batch.branch(parents, more)
        logits, _ = branch.run()
        again, _ = branch.select([3, 1]).run()
    longer = [[*rows[p], *m] for p, m in zip(parents, more, strict=True)]
    assert_rows_equal(lm, longer, [SPLITS[p] for p in parents], logits)
    assert_rows_equal(lm, [longer[3], longer[1]], [SPLITS[1], SPLITS[2]], again)


def test_low_precision_supports_splitting_too():
    lm, rows = load(tiny("llama", dtype=torch.bfloat16)), rows_of(LENGTHS)
    assert supports_splitting(lm)
    with torch.no_grad():
        logits, _ = SplitBatch(lm, rows, SPLITS).run()
    for fast, plain in by_row(lm, rows, SPLITS, logits):
        torch.testing.assert_close(fast, plain, atol=0.25, rtol=0.1)


def test_what_a_row_without_a_prefix_left_in_the_cache_is_zero():
    # Some kernels answer a row that may look at nothing with NaN, and 0 x NaN would spread to the other rows.
    batch = SplitBatch(load(tiny("llama")), rows_of(LENGTHS), SPLITS)
    widest = max(SPLITS)
    for keys, values in batch._cache:
        for row, split in enumerate(SPLITS):
            assert not keys[row, :, : widest - split].any()
            assert not values[row, :, : widest - split].any()
            assert keys[row, :, widest - split :].all()


def test_evaluating_gives_back_each_modules_own_mode():
    model, _ = tiny("gpt2")
    model.train()
    model.transformer.h[1].eval()
    before = [module.training for module in model.modules()]
    within = []
    with pytest.raises(BoomError), evaluating(model):
        boom(within.extend(module.training for module in model.modules()))
    assert not any(within)
    assert [module.training for module in model.modules()] == before
    assert any(before)
    assert not all(before)


# --- where splitting does not work ----------------------------------------------------------------------------------


def test_a_model_without_a_cache_runs_unsplit_with_the_same_numbers():
    lm, rows = load((odd_model(), tiny_tokenizer())), rows_of(LENGTHS)
    assert not supports_splitting(lm)
    batch = SplitBatch(lm, rows, SPLITS)
    assert batch.splits == [0] * len(rows)
    with torch.no_grad():
        logits, _ = batch.run()
    assert_rows_equal(lm, rows, batch.splits, logits)


PAIRS = [("Rome is the capital of", "France"), ("Rome is the capital of", "Italy and more"), ("Anna", "left the city")]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bloom"])
def test_scores_without_splitting_are_the_same(family, monkeypatch):
    lm = load(tiny(family))
    fast = score(lm, PAIRS)
    monkeypatch.setattr("errata.lm.forward.supports_splitting", lambda _: False)
    slow = score(lm, PAIRS)
    assert [s.correct for s in slow] == [s.correct for s in fast]
    assert [s.total for s in slow] == pytest.approx([s.total for s in fast], abs=1e-4)


# --- hooks ----------------------------------------------------------------------------------------------------------


class BoomError(Exception):
    pass


def boom(_):
    raise BoomError


def test_hooks_never_stay_behind():
    lm, rows = load(tiny("llama")), rows_of(LENGTHS)
    batch = SplitBatch(lm, rows, SPLITS)
    entry = lm.architecture.blocks[2].path
    out = out_projection(lm, 2)
    with torch.no_grad():
        _, seen = batch.run(inputs=[entry], stop=entry, stop_before=True)
        batch.run(
            start=2, hidden=seen.inputs[entry], at=(torch.tensor([0]), torch.tensor([0])), inputs=[out], outputs=[out],
            shift=(out, torch.zeros(len(rows), dtype=torch.long), torch.zeros(len(rows), 32)),
        )  # fmt: skip
    assert hooks_on(lm.model) == 0


def test_hooks_never_stay_behind_after_an_error():
    lm, rows = load(tiny("llama")), rows_of(LENGTHS)
    batch = SplitBatch(lm, rows, SPLITS)
    out = out_projection(lm, 2)
    wrong = (out, torch.zeros(len(rows), dtype=torch.long), torch.zeros(len(rows), 31))
    hidden = torch.zeros(*batch.ids.shape, 32)
    with pytest.raises(RuntimeError):
        batch.run(start=1, hidden=hidden, shift=wrong, inputs=[out], stop=lm.layer(3).path)
    assert hooks_on(lm.model) == 0
    with pytest.raises(AttributeError):
        batch.run(start=1, hidden=hidden, inputs=[out, "model.layers.9"])
    assert hooks_on(lm.model) == 0
    model, row = lm.model, rows[0]
    managers = [
        lambda: capture(model, inputs=[out], outputs=[out]),
        lambda: replace(model, out, boom),
        lambda: replace(model, out, boom, where="input"),
        lambda: stop_at(model, lm.layer(1).path),
        lambda: skipping([lm.block(0)], returns_tuple=False),
        lambda: gathered(model, "lm_head", torch.tensor([0]), torch.tensor([0])),
    ]
    for manager in managers:
        counts = []
        with pytest.raises(BoomError), manager():
            boom(counts.append(hooks_on(model)))
        assert counts[0] > 0
        assert hooks_on(model) == 0
    with pytest.raises(BoomError), replace(model, out, boom):
        plain_logits(model, row)
    with stop_at(model, out), capture(model, inputs=[out]):
        plain_logits(model, row)
    assert hooks_on(model) == 0


def test_a_forward_somebody_put_on_a_block_is_put_back():
    lm = load(tiny("llama"))
    block = lm.block(0)
    mine = block.forward
    block.forward = mine
    with skipping([block, lm.block(1)], returns_tuple=False):
        assert block.forward is not mine
    assert block.__dict__["forward"] is mine
    assert "forward" not in lm.block(1).__dict__


def test_foreign_hooks_survive():
    lm = load(tiny("llama"))
    calls = []
    handle = lm.block(1).register_forward_hook(lambda *_: calls.append(1))
    with capture(lm.model, outputs=[lm.layer(1).path]), stop_at(lm.model, lm.layer(1).path):
        plain_logits(lm.model, [5, 6])
    assert (len(calls), hooks_on(lm.model)) == (1, 1)
    handle.remove()


def test_capture_keeps_what_was_seen_and_not_what_became_of_it():
    # Falcon adds to its MLP's output in place.
    lm, row = load(tiny("falcon")), [5, 6, 7]
    out = out_projection(lm, 0)
    with torch.no_grad(), capture(lm.model, inputs=[out], outputs=[out]) as seen:
        plain_logits(lm.model, row)
    expected = seen.inputs[out] @ lm.weight(0).T + (
        0 if lm.out_projection(0).bias is None else lm.out_projection(0).bias
    )
    torch.testing.assert_close(seen.outputs[out], expected)


@pytest.mark.parametrize("where", ["input", "output"])
def test_a_stopped_pass_runs_nothing_beyond(where):
    lm, ran = load(tiny("gpt2")), []
    for i in range(4):
        lm.block(i).register_forward_hook(lambda *_, i=i: ran.append(i))
    with stop_at(lm.model, lm.layer(2).path, where=where):
        plain_logits(lm.model, [5, 6])
    assert ran == ([0, 1] if where == "input" else [0, 1, 2])


@pytest.mark.parametrize("family", ["gpt2", "gptj", "falcon", "llama"])
def test_replacing_a_blocks_input_and_output(family):
    lm, row = load(tiny(family)), [5, 6, 7]
    first, second = lm.layer(1).path, lm.layer(2).path
    fixed = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with replace(lm.model, first, lambda _: fixed):
            one = plain_logits(lm.model, row)
        with replace(lm.model, second, lambda _: fixed, where="input"):
            other = plain_logits(lm.model, row)
        untouched = plain_logits(lm.model, row)
    torch.testing.assert_close(one, other)
    assert (one - untouched).abs().max() > 0.1


def test_frozen_gives_back_each_weights_own_setting():
    model, _ = tiny("llama")
    chosen = list(model.parameters())[::3]
    for parameter in chosen:
        parameter.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    within = []
    with pytest.raises(BoomError), frozen(model):
        boom(within.extend(p.requires_grad for p in model.parameters()))
    assert not any(within)
    assert [p.requires_grad for p in model.parameters()] == before
    assert any(before)
    assert not all(before)


def test_add_at_changes_one_column_a_row_and_keeps_the_shape():
    hidden = torch.zeros(2, 3, 4)
    values = torch.arange(8.0).view(2, 4) + 1
    expected = hidden.clone()
    expected[0, 2], expected[1, 0] = values
    columns = torch.tensor([2, 0])
    assert torch.equal(add_at(hidden, columns, values), expected)
    assert torch.equal(add_at(hidden.view(6, 4), columns, values), expected.view(6, 4))
    assert not hidden.any()
