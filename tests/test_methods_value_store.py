"""Values kept on disk chunk by chunk, and values known beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.errors import StorageError
from errata.lm import load
from errata.methods.locate_then_edit import descent, row_groups
from errata.methods.locate_then_edit import values as module
from errata.methods.locate_then_edit.rewrites import tokenise
from errata.methods.locate_then_edit.store import ValueStore, chunk_key
from errata.methods.locate_then_edit.values import ValueSettings, optimise_values
from errata.testing import tiny
from reference.samples import CONTEXTS, EDITS, LATE, one_sentence

SETTINGS = ValueSettings(steps=5, learning_rate=0.5, weight_decay=0.5, clamp=4.0, kl_weight=0.0625, stop_loss=0.05)
ALL = (*EDITS, *LATE)
NAMES = ("delta", "start", "keys", "outputs")


@pytest.fixture(scope="module")
def lm():
    return load(tiny("llama"))


@pytest.fixture
def rewrites(lm, monkeypatch):
    monkeypatch.setattr(module, "EDITS_AT_ONCE", 2)  # four chunks
    return tokenise(lm, ALL, CONTEXTS)


@pytest.fixture
def store(tmp_path):
    return ValueStore(tmp_path / "values")


@pytest.fixture
def optimised(monkeypatch):
    """How many edits each optimised chunk had, as they come."""
    sizes = []
    original = descent.Chunk.optimise

    def counted(self, *arguments):
        sizes.append(len(self.rewrites))
        return original(self, *arguments)

    monkeypatch.setattr(descent.Chunk, "optimise", counted)
    return sizes


def solve(lm, rewrites, settings=SETTINGS, site="mlp", layer=1, **more):
    return optimise_values(lm, rewrites, layer, settings, site=site, **more)


def assert_identical(found, expected):
    for name in NAMES:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.losses, found.steps) == (expected.losses, expected.steps)


def test_a_store_changes_nothing_and_is_used_again(lm, rewrites, store, optimised):
    expected = solve(lm, rewrites)
    assert_identical(solve(lm, rewrites, store=store), expected)
    assert len(list(store.folder.iterdir())) == 4
    optimised.clear()
    assert_identical(solve(lm, rewrites, store=store), expected)
    assert not optimised


def test_killed_in_the_middle_and_resumed_it_is_bit_for_bit_the_same(lm, rewrites, store, optimised, monkeypatch):
    expected = solve(lm, rewrites)
    before = lm.fingerprint()
    step, seen = torch.optim.Adam.step, []

    def dies(self, *arguments):
        seen.append(1)
        if len(seen) == 11:  # in the third chunk: each takes four updates
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            solve(lm, rewrites, store=store)
    assert len(list(store.folder.iterdir())) == 2
    assert lm.fingerprint() == before
    optimised.clear()
    assert_identical(solve(lm, rewrites, store=store), expected)
    assert optimised == [2, 2]


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "not ours"])
def test_a_torn_file_is_computed_again(lm, rewrites, store, optimised, harm):
    expected = solve(lm, rewrites, store=store)
    first, second = sorted(store.folder.iterdir())[:2]
    data = first.read_bytes()
    spoilt = {
        "cut": data[: len(data) // 2],
        "flipped": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        "empty": b"",
        "not ours": second.read_bytes(),
    }
    first.write_bytes(spoilt[harm])
    optimised.clear()
    assert_identical(solve(lm, rewrites, store=store), expected)
    assert optimised == [2]
    assert first.read_bytes() == data


@pytest.mark.parametrize(
    "change",
    [
        {"settings": replace(SETTINGS, clamp=0.5)},
        {"settings": replace(SETTINGS, steps=4)},
        {"site": "block"},
        {"layer": 2},
        {"keep_keys": False},
        {"fingerprint": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_is_never_answered_from_it(lm, rewrites, store, optimised, change):
    solve(lm, rewrites, store=store)
    optimised.clear()
    solve(lm, rewrites, store=store, **change)
    assert len(optimised) == 4


def test_other_contexts_or_targets_are_another_question(lm):
    keys = {
        chunk_key(tokenise(lm, edits, contexts), layer=1)
        for edits in (EDITS[:2], EDITS[1:3], [replace(EDITS[0], target_new="Spain"), EDITS[1]])
        for contexts in (CONTEXTS, CONTEXTS[:2])
    }
    assert len(keys) == 6


def test_a_store_that_cannot_be_written_is_one_sentence(lm, rewrites, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError) as error:
        solve(lm, rewrites, store=ValueStore(tmp_path / "file"))
    assert one_sentence(error)


def test_known_values_are_not_optimised_again(lm, rewrites, optimised):
    full = solve(lm, rewrites)
    known = {rewrites[i].edit.edit_id: full.known(i) for i in (1, 4, 6)}
    optimised.clear()
    found = solve(lm, rewrites, known=known)
    assert optimised == [2, 2, 1]
    for i in (1, 4, 6):
        assert torch.equal(found.delta[i], full.delta[i])
        assert torch.equal(found.start[i], full.start[i])
        assert (found.losses[i], found.steps[i]) == (full.losses[i], full.steps[i])
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(full, name), rtol=1e-4, atol=1e-4)


def test_where_all_is_known_nothing_is_optimised_and_without_keys_nothing_is_run(lm, rewrites, optimised, monkeypatch):
    full = solve(lm, rewrites)
    known = {rewrite.edit.edit_id: full.known(i) for i, rewrite in enumerate(rewrites)}
    optimised.clear()
    torch.testing.assert_close(solve(lm, rewrites, known=known).keys, full.keys, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(row_groups, "SplitBatch", None)
    assert torch.equal(solve(lm, rewrites, known=known, keep_keys=False).delta, full.delta)
    assert not optimised


@pytest.mark.parametrize("stored", [False, True])
def test_keys_are_kept_only_where_wanted(lm, rewrites, store, stored):
    more = {"store": store} if stored else {}
    kept = solve(lm, rewrites)
    for _ in range(2):
        found = solve(lm, rewrites, keep_keys=False, **more)
        assert torch.equal(found.delta, kept.delta)
        assert found.keys.shape == (len(ALL), 0, kept.keys.shape[-1])
        assert found.outputs.shape == (len(ALL), 0, kept.outputs.shape[-1])
        assert found.keys.untyped_storage().nbytes() == 0
