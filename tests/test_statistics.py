"""Second moments equal a plain loop over tokens, come from one pass, and only from a cache file that is theirs."""

from __future__ import annotations

import shutil
from importlib import import_module

import pytest
import torch

from errata.errors import ArchitectureError, ConfigError, DatasetError, NumericalError
from errata.files import cache_dir
from errata.lm import load
from errata.lm.forward import SplitBatch
from errata.lm.tokens import encode
from errata.methods.locate_then_edit.config import LocateThenEditConfig
from errata.methods.locate_then_edit.moments import metrics_for
from errata.patch import LowRank, Patch
from errata.records import Edit
from errata.statistics import open_corpus, second_moments
from errata.statistics.corpora import WINDOW, SelfSampled, TextFiles, _sentences
from errata.statistics.second_moments import TOKENS_PER_WIDTH, enough_tokens
from errata.testing import FAMILIES, tiny
from reference.plain_keys import plain_second_moment
from reference.samples import one_sentence

MODULE = import_module("errata.statistics.second_moments")  # the package's attribute of that name is the function
LINES = [
    "The city of Marlow stands on the river Tane, and the river divides the old town from the new.",
    "Anna Petrova was born in Marlow.",
    "x",
    "Berlin is the capital of Germany; London lies on the Thames. " * 12,
    "In the north of the country the mountains begin.",
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


@pytest.fixture
def passes(monkeypatch):
    """How many passes over a batch have run so far."""
    ran = []
    original = SplitBatch.run

    def counted(self, **options):
        ran.append(options)
        return original(self, **options)

    monkeypatch.setattr(SplitBatch, "run", counted)
    return ran


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[i].matrix, second[i].matrix) for i in first)


# --- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "gptj", "opt", "bloom"])
def test_second_moments_equal_a_plain_loop(family, text, passes):
    lm, corpus = load(tiny(family)), open_corpus(str(text))
    found = second_moments(lm, [2, 0], corpus, tokens=400)
    assert len(passes) == 1
    windows = list(corpus.windows(lm, 400))
    for layer in (0, 2):
        expected, count = plain_second_moment(lm.model, windows, lm.layer(layer).out_projection)
        assert found[layer].count == count == sum(len(w) - 1 for w in windows)
        assert found[layer].matrix.dtype == torch.float32
        torch.testing.assert_close(found[layer].matrix.double(), expected, atol=1e-5, rtol=1e-4)
        assert (found[layer].layer, found[layer].corpus) == (layer, corpus.identity)
    assert list(found) == [2, 0]


def test_many_batches_give_the_same_as_one(text, monkeypatch, passes):
    lm, corpus = load(tiny("llama")), open_corpus(str(text))
    one = second_moments(lm, [1], corpus, tokens=400)
    monkeypatch.setattr(MODULE, "BATCH_TOKENS", 10)
    many = second_moments(lm, [1], corpus, tokens=400, rebuild=True)
    assert len(passes) > 3
    assert many[1].count == one[1].count
    torch.testing.assert_close(many[1].matrix, one[1].matrix, atol=1e-5, rtol=1e-4)


def test_the_pass_stops_before_the_highest_layers_matrix(text):
    lm, ran = load(tiny("gpt2")), []
    for name in ("transformer.h.1.mlp.c_proj", "transformer.h.2", "lm_head"):
        lm.model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    second_moments(lm, [0, 1], open_corpus(str(text)), tokens=100)
    assert ran == []


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mixtral"}))
def test_a_second_moment_is_symmetric_and_positive(family, text):
    found = second_moments(load(tiny(family)), [0, 1, 2, 3], open_corpus(str(text)), tokens=300)
    for moment in found.values():
        assert torch.equal(moment.matrix, moment.matrix.T)
        values = torch.linalg.eigvalsh(moment.matrix.double())
        assert values.min() > -1e-5 * values.max()
        assert values.max() > 0


def test_the_sample_size_follows_the_widest_key():
    assert enough_tokens(load(tiny("llama")), [0, 1]) == TOKENS_PER_WIDTH * 72
    assert enough_tokens(load(tiny("gpt2")), [0]) == TOKENS_PER_WIDTH * 80


@pytest.mark.parametrize("tokens", [0, 1, -5])
def test_too_few_tokens_are_refused(tokens, text):
    with pytest.raises(ConfigError, match="means nothing") as error:
        second_moments(load(tiny("gpt2")), [0], open_corpus(str(text)), tokens=tokens)
    assert one_sentence(error)


def test_a_corpus_shorter_than_asked_is_used_whole(text):
    lm, corpus = load(tiny("gpt2")), open_corpus(str(text))
    assert second_moments(lm, [0], corpus, tokens=10**6)[0].count == sum(len(w) - 1 for w in corpus.windows(lm, 10**6))


def test_a_layer_that_cannot_be_edited_is_refused(text):
    for family, layer in (("mixtral", 0), ("gpt2", 9)):
        with pytest.raises(ArchitectureError):
            second_moments(load(tiny(family)), [layer], open_corpus(str(text)), tokens=50)


def test_keys_that_are_not_finite_are_refused_and_not_kept(text):
    lm = load(tiny("llama"))
    with torch.no_grad():
        lm.model.model.layers[1].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite") as error:
        second_moments(lm, [2], open_corpus(str(text)), tokens=50)
    assert one_sentence(error)
    assert not list(cache_dir().rglob("*.safetensors"))


# --- the cache ------------------------------------------------------------------------------------------------------


def test_a_second_question_runs_nothing(text, passes):
    lm, corpus = load(tiny("gpt2")), open_corpus(str(text))
    first = second_moments(lm, [0, 1], corpus, tokens=200)
    ran = len(passes)
    assert same(second_moments(lm, [0, 1], corpus, tokens=200), first)
    assert same(second_moments(load(tiny("gpt2")), [0, 1], open_corpus(str(text)), tokens=200), first)
    assert len(passes) == ran


def test_only_the_missing_layers_are_measured(text, passes):
    lm, corpus = load(tiny("gpt2")), open_corpus(str(text))
    second_moments(lm, [0], corpus, tokens=200)
    second_moments(lm, [0, 2], corpus, tokens=200)
    assert [len(run["inputs"]) for run in passes] == [1, 1]
    assert passes[-1]["inputs"] == ["transformer.h.2.mlp.c_proj"]


@pytest.mark.parametrize("change", ["tokens", "text", "weights", "rebuild"])
def test_another_question_is_measured_anew(change, text, passes):
    lm, corpus = load(tiny("gpt2")), open_corpus(str(text))
    before = second_moments(lm, [0], corpus, tokens=200)
    options = {"tokens": 300} if change == "tokens" else {"tokens": 200, "rebuild": change == "rebuild"}
    if change == "text":
        text.write_text("Another text about the river and the bridge.")
        corpus = open_corpus(str(text))
    if change == "weights":
        with torch.no_grad():
            lm.model.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    after = second_moments(lm, [0], corpus, **options)
    assert len(passes) == 2
    assert same(before, after) is (change == "rebuild")


def cached(layer):
    (path,) = cache_dir("second_moments").rglob(f"layer_{layer:03d}.safetensors")
    return path


def torn(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))


def replaced_by_other_layer(path):
    shutil.copy(path.with_name("layer_001.safetensors"), path)


def no_note(path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path)


def another_kind(path):
    path.write_text("this is no safetensors file at all, whatever its name says")


@pytest.mark.parametrize("damage", [torn, emptied, flipped, replaced_by_other_layer, no_note, another_kind])
def test_a_damaged_or_foreign_file_is_rebuilt(damage, text, passes):
    lm, corpus = load(tiny("gpt2")), open_corpus(str(text))
    first = second_moments(lm, [0, 1], corpus, tokens=200)
    damage(cached(0))
    assert same(second_moments(lm, [0, 1], corpus, tokens=200), first)
    assert len(passes) == 2
    assert same(second_moments(lm, [0, 1], corpus, tokens=200), first)
    assert len(passes) == 2


@pytest.mark.parametrize("other", ["weights", "corpus", "tokens"])
def test_a_file_of_another_question_is_rebuilt(other, text, tmp_path, passes):
    lm, corpus = load(tiny("gpt2")), open_corpus(str(text))
    first = second_moments(lm, [0], corpus, tokens=200)
    path = cached(0)
    kept = path.read_bytes()
    path.unlink()
    if other == "weights":
        second_moments(load(tiny("gpt2", seed=5)), [0], corpus, tokens=200)
    elif other == "tokens":
        second_moments(lm, [0], corpus, tokens=100)
    else:
        (tmp_path / "b.txt").write_text(LINES[0])
        second_moments(lm, [0], open_corpus(str(tmp_path / "b.txt")), tokens=200)
    foreign = cached(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(foreign, path)
    assert path.read_bytes() != kept
    assert same(second_moments(lm, [0], corpus, tokens=200), first)
    assert len(passes) == 3


def test_an_interrupted_measurement_leaves_no_file(text, monkeypatch):
    lm = load(tiny("gpt2"))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        second_moments(lm, [0], open_corpus(str(text)), tokens=100)
    assert [p for p in cache_dir().rglob("*") if p.is_file()] == []


def test_a_patched_models_metric_is_that_of_its_bare_weights(text):
    config = LocateThenEditConfig(corpus=str(text), corpus_tokens=200)
    lm = load(tiny("gpt2", seed=11))
    expected = second_moments(load(tiny("gpt2", seed=11)), [1], open_corpus(str(text)), tokens=200)[1]
    cached(1).unlink()
    edit = Edit(prompt="{} is", subject="Rome", target_new="old")
    left, right = torch.randn(32, 1, generator=torch.Generator().manual_seed(0)), torch.ones(1, 80)
    patch = Patch.create(
        lm, [LowRank("transformer.h.0.mlp.c_proj.weight", left, right, True)], method="rome", config={}, edits=[edit]
    )
    patch.apply(lm)
    weights = [p.clone() for p in lm.model.parameters()]
    metrics_for(lm, [1], config)
    assert all(torch.equal(a, b) for a, b in zip(weights, lm.model.parameters(), strict=True))
    kept = second_moments(load(tiny("gpt2", seed=11)), [1], open_corpus(str(text)), tokens=200)[1]
    assert torch.equal(kept.matrix, expected.matrix)
    patch.revert(lm)


# --- corpora --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_text_sampled_from_the_model_is_the_same_each_time(family):
    lm = load(tiny(family))
    first = list(SelfSampled().windows(lm, 1000, batch_size=4))
    torch.manual_seed(1234)
    assert list(SelfSampled().windows(load(tiny(family)), 1000, batch_size=4)) == first
    assert list(SelfSampled(seed=1).windows(lm, 1000, batch_size=4)) != first
    assert all(2 <= len(window) <= WINDOW for window in first)
    assert 1000 <= sum(map(len, first)) < 1000 + WINDOW


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sampled_text_is_cut_into_sentences_that_begin_as_a_prompt_does(family):
    lm = load(tiny(family))
    windows = list(SelfSampled().windows(lm, 1000, batch_size=4))
    assert list(encode(lm.tokenizer, "Famous painters and where they were born:").ids) in windows
    for window in windows:
        text = lm.tokenizer.decode(window, skip_special_tokens=True)
        assert window[:1] == list(encode(lm.tokenizer, text).ids[:1])
        assert "\n" not in text


def test_sampled_text_without_a_sentence_is_kept_whole():
    lm = load(tiny("gpt2"))
    row = list(encode(lm.tokenizer, "1.\n2.\n3.\n").ids)
    assert _sentences(lm, row) == [row]
    two = list(encode(lm.tokenizer, "Rome is the capital of Italy. Vienna is the capital of Austria.").ids)
    assert [lm.tokenizer.decode(s) for s in _sentences(lm, two)] == [
        "Rome is the capital of Italy.",
        "Vienna is the capital of Austria.",
    ]


def test_the_default_corpus_is_the_model_itself():
    assert open_corpus(None).identity == open_corpus("self").identity == "self-lists-0"
    found = second_moments(load(tiny("gpt2")), [0], open_corpus(None), tokens=200)
    assert found[0].count > 150


def test_files_are_read_as_documents_cut_into_windows(text):
    lm = load(tiny("gpt2"))
    windows = list(TextFiles(text).windows(lm, 10**6))
    assert [lm.tokenizer.decode(w) for w in windows[:2]] == LINES[:2]
    assert max(map(len, windows)) == WINDOW
    assert all(len(w) > 1 for w in windows)
    assert sum(map(len, TextFiles(text).windows(lm, 30))) >= 30


def test_a_texts_name_in_the_cache_is_its_content(text, tmp_path):
    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    shutil.copy(text, copy)
    other.write_text("\n".join([*LINES, "one more"]))
    assert open_corpus(str(copy)).identity == open_corpus(str(text)).identity != open_corpus(str(other)).identity


def test_a_corpus_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no corpus") as error:
        open_corpus(str(tmp_path / "nothing.txt"))
    assert one_sentence(error)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DatasetError, match="holds no text"):
        open_corpus(str(tmp_path / "empty.txt"))


def test_a_corpus_object_is_taken_as_it_is():
    corpus = SelfSampled(3)
    assert open_corpus(corpus) is corpus
