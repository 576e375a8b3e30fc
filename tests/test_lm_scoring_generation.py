"""Scores, perplexity and generation equal plain loops through the model, one text at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from errata.errors import RequestError
from errata.lm import generate, load, perplexity, score
from errata.lm.generation import generate_ids
from errata.lm.prompts import PromptBatch
from errata.lm.scoring import window_nlls
from errata.lm.tokens import encode, target_ids
from errata.testing import FAMILIES, VARIANTS, tiny, tiny_tokenizer
from reference.plain_model import plain_log_probability, plain_logits
from reference.samples import one_sentence

ALL = (*FAMILIES, *VARIANTS)
PAIRS = [
    ("Rome is the capital of", "France"),
    ("Rome is the capital of", "Italy and of the world"),
    ("R", "ome"),
    ("The mother tongue of Maria Gonzalez is", "Spanish"),
    ("The mother tongue of Maria Gonzalez is", "Swedish"),
    ("日本の首都は", "東京"),
    ("Rome is the capital of", "France"),
]
PROMPTS = ["Rome is the capital of", "Anna", "She learned English there, and then", "The river"]
TEXT = "The city of Marlow stands on the river Tane, and the river divides the old town from the new. " * 6


@pytest.mark.parametrize("family", ALL)
def test_scores_equal_a_plain_loop(family):
    lm = load(tiny(family))
    for (prompt, target), found in zip(PAIRS, score(lm, PAIRS), strict=True):
        ids, wanted = encode(lm.tokenizer, prompt).ids, target_ids(lm.tokenizer, prompt, target)
        with torch.no_grad():
            expected = plain_log_probability(lm.model, ids, wanted)
            likeliest = plain_logits(lm.model, [*ids, *wanted]).argmax(-1)[len(ids) - 1 : -1]
        assert found.total == pytest.approx(float(expected.sum()), abs=2e-4)
        assert found.log_probability == pytest.approx(float(expected.mean()), abs=2e-4)
        assert found.correct == tuple((likeliest == torch.tensor(wanted)).tolist())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "mixtral"])
def test_answers_that_share_a_prompt_score_as_they_do_alone(family):
    lm = load(tiny(family))
    together = score(lm, PAIRS)
    alone = [score(lm, [pair])[0] for pair in PAIRS]
    assert [s.total for s in together] == pytest.approx([s.total for s in alone], abs=2e-4)
    assert [s.correct for s in together] == [s.correct for s in alone]
    assert together[0] == together[-1]


def test_a_shared_prompt_is_computed_once(monkeypatch):
    lm = load(tiny("gpt2"))
    score(lm, PAIRS[:1])  # the check whether splitting works comes first
    filled = []
    original = PromptBatch._fill

    def fill(self, group, prompts):
        filled.append(len(group))
        return original(self, group, prompts)

    monkeypatch.setattr(PromptBatch, "_fill", fill)
    score(lm, [(PAIRS[0][0], word) for word in ("France", "Italy", "Austria", "the old town")])
    assert filled == [1]


def test_more_pairs_than_a_batch_keep_their_order():
    lm = load(tiny("gpt2"))
    pairs = [("Rome is " + "very " * (i % 7), word) for i in range(60) for word in ("old", "new")]
    assert [s.total for s in score(lm, pairs)] == pytest.approx([score(lm, [p])[0].total for p in pairs], abs=2e-4)


def test_no_pairs_give_no_scores():
    assert score(load(tiny("gpt2")), []) == []


@pytest.mark.parametrize(("prompt", "target", "what"), [("", "Rome", "prompt is empty"), ("Rome is", "", "is empty")])
def test_a_score_that_cannot_be_given_is_refused(prompt, target, what):
    with pytest.raises(RequestError, match=what) as error:
        score(load(tiny("gpt2")), [(prompt, target)])
    assert one_sentence(error)


def test_an_empty_prompt_scores_after_bos():
    model, _ = tiny("llama")
    lm = load((model, tiny_tokenizer(bos=True)))
    wanted = target_ids(lm.tokenizer, "", "Rome")
    with torch.no_grad():
        expected = plain_log_probability(model, [1], wanted).sum()
    assert score(lm, [("", "Rome")])[0].total == pytest.approx(float(expected), abs=1e-4)


# --- perplexity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "tokens"), [(256, None), (20, None), (20, 50), (20, 41)])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "bloom"])
def test_perplexity_equals_a_plain_loop(family, window, tokens):
    lm = load(tiny(family))
    ids = encode(lm.tokenizer, TEXT).ids[:tokens]
    losses = []
    for at in range(0, len(ids), window):
        part = list(ids[at : at + window])
        if len(part) > 1:
            with torch.no_grad():
                losses.append(-plain_log_probability(lm.model, part[:1], part[1:]).double())
    assert perplexity(lm, TEXT, window=window, tokens=tokens) == pytest.approx(
        float(torch.cat(losses).mean().exp()), rel=1e-4
    )
    sums = window_nlls(lm, TEXT, window=window, tokens=tokens)
    assert [count for _, count in sums] == [len(x) for x in losses]
    assert [total for total, _ in sums] == pytest.approx([float(x.sum()) for x in losses], rel=1e-4)


def test_a_broken_model_has_a_large_perplexity_and_not_an_error():
    lm = load(tiny("llama"))
    with torch.no_grad():
        lm.model.lm_head.weight.mul_(1e6)
    assert perplexity(lm, TEXT) == math.inf


# --- generation -----------------------------------------------------------------------------------------------------


def greedy(lm, prompt, count):
    """One token after another by argmax of a plain pass; ends after EOS."""
    ids = list(encode(lm.tokenizer, prompt).ids)
    more = []
    for _ in range(count):
        with torch.no_grad():
            more.append(int(plain_logits(lm.model, [*ids, *more])[-1].argmax()))
        if more[-1] == lm.tokenizer.eos_token_id:
            break
    return more


@pytest.mark.parametrize("family", ALL)
def test_greedy_generation_of_a_batch_equals_argmax_one_by_one(family):
    lm = load(tiny(family))
    out = generate_ids(lm, [encode(lm.tokenizer, p).ids for p in PROMPTS], max_new_tokens=6)
    assert out == [greedy(lm, p, 6) for p in PROMPTS]
    assert generate(lm, PROMPTS, max_new_tokens=6) == [lm.tokenizer.decode(o, skip_special_tokens=True) for o in out]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_greedy_generation_equals_the_models_own(family):
    lm = load(tiny(family))
    for prompt, text in zip(PROMPTS, generate(lm, PROMPTS, max_new_tokens=8), strict=True):
        ids = torch.tensor([encode(lm.tokenizer, prompt).ids])
        own = lm.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert text == lm.tokenizer.decode(own, skip_special_tokens=True)


def test_an_empty_prompt_cannot_be_continued_unless_bos_stands_before_it():
    model, tokenizer = tiny("gpt2")
    with pytest.raises(RequestError, match="prompt is empty"):
        generate(load((model, tokenizer)), ["Rome", ""])
    lm = load((model, tiny_tokenizer(bos=True)))
    assert generate_ids(lm, [[1]], max_new_tokens=3) == [greedy(lm, "", 3)]
    assert generate(lm, ["", "Rome"], max_new_tokens=3)[0] == lm.tokenizer.decode(
        greedy(lm, "", 3), skip_special_tokens=True
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", 5.0), ("top_p", 0.01), ("temperature", 0.01), ("no_repeat_ngram_size", 1), ("top_k", 1)],
)
def test_the_checkpoints_own_generation_settings_have_no_say(name, value):
    lm = load(tiny("llama"))
    plain, drawn = (generate(lm, PROMPTS, max_new_tokens=12, sample=s) for s in (False, True))
    setattr(lm.model.generation_config, name, value)
    own = lm.model.generation_config
    assert generate(lm, PROMPTS, max_new_tokens=12) == plain
    assert generate(lm, PROMPTS, max_new_tokens=12, sample=True) == drawn
    assert lm.model.generation_config is own


def saying(tokens):
    """A model that goes through a list of tokens, whatever the prompt says: its layers are blind, its head a table."""
    lm = load(tiny("llama", layers=2))
    tail = dict(itertools.pairwise(tokens))
    with torch.no_grad():
        for block in lm.model.model.layers:
            block.mlp.down_proj.weight.zero_()
            block.self_attn.o_proj.weight.zero_()
        table = lm.model.get_input_embeddings().weight
        table.copy_(
            torch.nn.functional.normalize(torch.randn(table.shape, generator=torch.Generator().manual_seed(1)), dim=-1)
        )
        lm.model.model.norm.weight.fill_(1.0)
        head = lm.model.lm_head.weight
        head.zero_()
        for before, after in tail.items():
            head[after] += table[before]
    return lm


def ids_of(*texts):
    return [i for t in texts for i in tiny_tokenizer()(t).input_ids]


@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [
        (" city. The", "natural", " city."),
        (" city. The", "eos", " city. The"),
        (" city\nThe", "natural", " city\n"),
        ("\n city. The", "natural", "\n city."),
        (" city! The", "natural", " city!"),
        (" city, the", "natural", " city, the"),
    ],
)
def test_where_an_answer_ends(said, stop, text):
    start, end = ids_of("Rome"), tiny_tokenizer().eos_token_id
    words = ids_of(said)
    assert len(set(words)) == len(words), "the table needs distinct tokens"
    lm = saying([start[-1], *words, end])
    assert generate(lm, ["Rome"], max_new_tokens=12, stop=stop) == [text]
    assert ids_of("oldRome")[-1] == start[-1]
    assert generate(lm, ["Rome", "oldRome"], max_new_tokens=12, stop=stop) == [text, text]


def test_never_stopping_gives_the_full_length():
    start, end = ids_of("Rome"), tiny_tokenizer().eos_token_id
    lm = saying([start[-1], *ids_of(" city"), end])
    assert [len(row) for row in generate_ids(lm, [start], max_new_tokens=9, stop="never")] == [9]
    assert [len(row) for row in generate_ids(lm, [start], max_new_tokens=9, stop="eos")] == [len(ids_of(" city")) + 1]


def test_special_tokens_are_left_out_unless_asked_for():
    start, end = ids_of("Rome"), tiny_tokenizer().eos_token_id
    lm = saying([start[-1], *ids_of(" city"), end])
    assert generate(lm, ["Rome"]) == [" city"]
    assert generate(lm, ["Rome"], skip_special_tokens=False) == [" city<eos>"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_sampling_is_decided_by_its_seed_and_leaves_the_global_one(family):
    lm = load(tiny(family))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = generate(lm, PROMPTS, max_new_tokens=8, sample=True, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert generate(lm, PROMPTS, max_new_tokens=8, sample=True, seed=3) == first
    assert generate(lm, PROMPTS, max_new_tokens=8, sample=True, seed=4) != first
    assert first != generate(lm, PROMPTS, max_new_tokens=8)


def test_sampling_among_one_token_is_greedy():
    lm = load(tiny("gpt2"))
    assert generate(lm, PROMPTS, max_new_tokens=8, sample=True, top_k=1) == generate(lm, PROMPTS, max_new_tokens=8)


def test_sampling_draws_from_the_whole_distribution():
    lm = load(tiny("gpt2"))
    ids = encode(lm.tokenizer, "Anna").ids
    drawn = [
        row[0] for row in generate_ids(lm, [ids] * 2000, max_new_tokens=1, sample=True, stop="never", batch_size=500)
    ]
    with torch.no_grad():
        expected = plain_logits(lm.model, ids)[-1]
    expected[[lm.tokenizer.eos_token_id]] = -torch.inf  # a text that never stops draws no EOS
    expected = expected.softmax(-1)
    seen = torch.bincount(torch.tensor(drawn), minlength=512) / len(drawn)
    assert (seen - expected).abs().max() < 0.04
    assert len(set(drawn)) > 51  # more than the 50 likeliest, a library's usual silent limit


@pytest.mark.parametrize("bad", [[], ["Rome"] * 5])
def test_batches_of_any_size(bad):
    lm = load(tiny("gpt2"))
    assert generate(lm, bad, max_new_tokens=2, batch_size=2) == [
        t for p in bad for t in generate(lm, [p], max_new_tokens=2)
    ]
