"""Subjects by character offsets, targets by difference, one BOS, padding: where most editing bugs live."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from errata.errors import ModelError, RequestError
from errata.lm import load, score
from errata.lm.generation import generate
from errata.lm.tokens import chat_prompt, encode, joined, last_token_of, pad, pad_id, positions, target_ids
from errata.methods.locate_then_edit.rewrites import tokenise
from errata.records import Edit
from errata.testing import tiny_model, tiny_tokenizer
from reference.plain_model import plain_log_probability
from reference.samples import one_sentence

PLAIN, WITH_BOS = tiny_tokenizer(), tiny_tokenizer(bos=True)


def lookup_text(tokenizer, edit):
    """(all tokens up to and including the subject's last one, all tokens before that one), decoded."""
    encoded = encode(tokenizer, edit.text)
    at = last_token_of(encoded, edit.subject_span)
    ids = list(encoded.ids)
    return tuple(tokenizer.decode(ids[:n], skip_special_tokens=True) for n in (at + 1, at))


# --- subjects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS], ids=["plain", "bos"])
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("{} is the capital of", "Rome"),
        ("{} is the capital of", "Wolverhampton"),
        ("The mother tongue of {} is", "Maria Gonzalez"),
        ("People say of {}", "Professor James Whitman"),
        ("The capital of {} is", "日本"),
        ("Столица страны {} это", "Российская Федерация"),
        ("{} هي عاصمة", "القاهرة"),
        ("Everybody knows {}'s bridge in", "O'Brien"),
        ('She said "{}" and left for', "d'Artagnan's"),
        ("The team of {}, as written, is", "Zürich 👩‍🚀"),
        ("{}: where it is,", "A"),
    ],
)
def test_the_lookup_token_ends_the_subject(tokenizer, prompt, subject):
    edit = Edit(prompt=prompt, subject=subject, target_new="x")
    with_it, without = lookup_text(tokenizer, edit)
    end = edit.subject_span[1]
    assert with_it == edit.text[:end]
    assert not without.startswith(edit.text[:end])


def test_a_subject_of_one_token_may_stand_at_the_first_position():
    assert last_token_of(encode(PLAIN, "Rome is"), (0, 4)) == len(encode(PLAIN, "Rome").ids) - 1
    assert last_token_of(encode(WITH_BOS, "Rome is"), (0, 4)) == len(encode(PLAIN, "Rome").ids)


def test_a_repeated_subject_is_looked_up_in_its_slot():
    edit = Edit(prompt="Rome is old, and {} is the capital of", subject="Rome", target_new="x")
    with_it, _ = lookup_text(PLAIN, edit)
    assert with_it == "Rome is old, and Rome"
    first = Edit(prompt="Rome is old, and Rome is the capital of", subject="Rome", target_new="x")
    assert lookup_text(PLAIN, first)[0] == "Rome"


def test_a_subject_inside_a_longer_word_ends_in_the_token_that_covers_it():
    edit = Edit(prompt="The {}s of the city are", subject="house", target_new="x")
    with_it, without = lookup_text(PLAIN, edit)
    assert with_it.startswith("The house")
    assert "house" not in without


def test_a_span_without_tokens_is_refused():
    with pytest.raises(RequestError, match="No token covers") as error:
        last_token_of(encode(PLAIN, "Rome"), (4, 5))
    assert one_sentence(error)


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(before=words, subject=words, after=words, bos=st.booleans())
def test_any_subject_ends_in_its_lookup_token(before, subject, after, bos):
    tokenizer = WITH_BOS if bos else PLAIN
    text, span = before + subject + after, (len(before), len(before) + len(subject))
    encoded = encode(tokenizer, text)
    at = last_token_of(encoded, span)
    added = int(encoded.offsets[0] == (0, 0))  # a BOS that is not in the text
    assert added == (bos and not text.startswith("<bos>"))
    upto, short = (tokenizer.decode(list(encoded.ids[added:n])) for n in (at + 1, at))
    # The token may reach beyond the subject, never end before it; and the tokens before it do not suffice.
    assert upto.startswith(text[: span[1]])
    assert not short.startswith(text[: span[1]])


@settings(max_examples=60, deadline=None)
@given(context=words, before=words, subject=words.filter(str.strip), after=words)
def test_any_context_moves_the_lookup_with_it(context, before, subject, after):
    edit = Edit(prompt=before + "{}" + after, subject=subject, target_new="Rome")
    row = tokenise(LM, [edit], [context])[0].prompts[0]
    assert PLAIN.decode(list(row.ids)) == context + edit.text
    end = len(context) + edit.subject_span[1]
    assert PLAIN.decode(list(row.ids[: row.lookup + 1])).startswith((context + edit.text)[:end])


LM = load((tiny_model("gpt2"), PLAIN))


def test_rows_of_a_rewrite():
    edit = Edit(prompt="The mother tongue of {} is", subject="Maria Gonzalez", target_new="German and Spanish")
    (rewrite,) = tokenise(LM, [edit], ["", "Braces {0} {x} {} stay. "])
    assert [PLAIN.decode(list(r.ids)) for r in rewrite.prompts] == [edit.text, "Braces {0} {x} {} stay. " + edit.text]
    assert PLAIN.decode(list(rewrite.target)) == " German and Spanish"
    assert PLAIN.decode(list(rewrite.essence.ids)) == "Maria Gonzalez"
    assert rewrite.essence.lookup == len(rewrite.essence.ids) - 1
    for row, training, key in zip(rewrite.prompts, rewrite.training_rows(), rewrite.key_rows(), strict=True):
        assert training.ids == (*row.ids, *rewrite.target[:-1])
        assert PLAIN.decode(list(key.ids)).endswith("Maria Gonzalez")
        assert key.lookup == row.lookup == len(key.ids) - 1


def test_a_prompt_longer_than_the_model_is_refused():
    edit = Edit(prompt="Long " * 300 + "{} is", subject="Rome", target_new="x")
    with pytest.raises(RequestError, match="too many for this model") as error:
        tokenise(LM, [edit], [""])
    assert one_sentence(error)


# --- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS], ids=["plain", "bos"])
@pytest.mark.parametrize(
    "target", ["France", "the old town", "Wolverhampton", " Rome ", "1954", "naïve café", "O'Brien"]
)
def test_a_target_is_what_follows_the_prompt(tokenizer, target):
    prompt = "Rome is the capital of"
    ids = target_ids(tokenizer, prompt, target.strip())
    assert tokenizer.decode(list(ids)) == f" {target.strip()}"
    whole = encode(tokenizer, f"{prompt} {target.strip()}").ids
    assert encode(tokenizer, prompt).ids + ids == whole
    assert tokenizer.bos_token_id not in ids


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("Rome is", "old", "Rome is old"),
        ("Rome is ", "old", "Rome is old"),
        ("日本の首都は", "東京", "日本の首都は東京"),
        ("日本の首都は", "Tokyo", "日本の首都はTokyo"),
        ("The capital is", "東京", "The capital is東京"),
        ("서울은", "한국", "서울은한국"),
        ("Москва это", "город", "Москва это город"),
        ("", "old", "old"),
    ],
)
def test_the_blank_between_prompt_and_target(prompt, target, text):
    assert joined(prompt, target) == text


def test_a_wide_target_takes_no_blank_in_its_tokens():
    ids = target_ids(PLAIN, "日本の首都は", "東京")
    assert PLAIN.decode(list(ids)) == "東京"


@pytest.mark.parametrize("target", ["", "  ", "\n"])
def test_an_empty_target_is_refused(target):
    with pytest.raises(RequestError, match="empty") as error:
        target_ids(PLAIN, "Rome is", target)
    assert one_sentence(error)


def test_a_target_that_is_a_special_token_is_refused():
    with pytest.raises(RequestError, match="cannot express"):
        target_ids(PLAIN, "Rome is", "<eos>")


def test_a_merge_across_the_border_falls_back_to_the_targets_own_tokens():
    # A prompt that ends in a blank merges it with the next word.
    ids = target_ids(PLAIN, "Rome is ", "old")
    assert PLAIN.decode(list(ids)).strip() == "old"


def word_level(*, lower=False):
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<eos>", "rome", "is", "old", "Rome", "x"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")


def test_a_target_that_the_tokenizer_cannot_express_is_refused():
    tokenizer = word_level()
    assert target_ids(tokenizer, "Rome is", "old") == (4,)
    with pytest.raises(RequestError, match=r"cannot express the target 'young'") as error:
        target_ids(tokenizer, "Rome is", "young")
    assert one_sentence(error)


def test_a_tokenizer_that_lowers_case_can_express_a_name():
    assert target_ids(word_level(lower=True), "rome is", "Rome") == (2,)


def closing_tokenizer():
    """Each text ends in EOS, as with some sequence-to-sequence tokenizers."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    return tokenizer


def test_a_tokenizer_that_closes_texts_gives_the_same_prompt_and_target():
    closing = closing_tokenizer()
    assert closing("Rome").input_ids[-1] == closing.eos_token_id
    assert encode(closing, "Rome is") == encode(PLAIN, "Rome is")
    assert target_ids(closing, "Rome is", "old") == target_ids(PLAIN, "Rome is", "old")
    assert score(load((tiny_model("gpt2"), closing)), [("Rome is", "old")]) == score(LM, [("Rome is", "old")])


# --- special tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Rome", "<bos>Rome", "Rome is the capital of"])
def test_exactly_one_bos(text):
    ids = encode(WITH_BOS, text).ids
    assert ids.count(WITH_BOS.bos_token_id) == 1
    assert ids[0] == WITH_BOS.bos_token_id


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_exactly_one_bos_under_a_chat_template(system):
    text = chat_prompt(WITH_BOS, "Where is Rome?", system=system)
    ids = encode(WITH_BOS, text).ids
    assert ids.count(WITH_BOS.bos_token_id) == 1
    assert WITH_BOS.decode(list(ids)) == text
    assert text.endswith("<|im_start|>assistant\n")
    assert ("Be brief." in text) is (system is not None)
    (rewrite,) = tokenise(
        load((tiny_model("gpt2"), WITH_BOS)),
        [Edit(prompt=text.replace("Rome", "{}"), subject="Rome", target_new="x")],
        [""],
    )
    assert rewrite.prompts[0].ids.count(WITH_BOS.bos_token_id) == 1


def test_a_model_without_a_chat_template_says_so():
    with pytest.raises(ModelError, match="no chat template") as error:
        chat_prompt(tiny_tokenizer(chat_template=False), "Where?")
    assert one_sentence(error)


def test_a_tokenizer_without_offsets_says_so():
    class NoOffsets:
        bos_token = None

        def __call__(self, *_, **__):
            raise NotImplementedError

    with pytest.raises(ModelError, match="offsets") as error:
        encode(NoOffsets(), "Rome")
    assert one_sentence(error)


# --- padding --------------------------------------------------------------------------------------------------------


def test_pad_and_positions():
    ids, mask = pad([[7, 8, 9], [5]], 0, side="left")
    assert ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions(mask).tolist() == [[0, 1, 2], [0, 0, 0]]
    ids, mask = pad([[7, 8, 9], [5]], 0)
    assert ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert positions(mask)[0].tolist() == [0, 1, 2]
    assert pad([], 0)[0].shape == (0, 0)


def test_pad_id_falls_back():
    assert pad_id(PLAIN) == 0
    unpadded = tiny_tokenizer()
    unpadded.pad_token = None
    assert pad_id(unpadded) == unpadded.eos_token_id
    unpadded.eos_token = None
    assert pad_id(unpadded) == 0


PAIRS = [("Rome is the capital of", "France"), ("Anna", "left the city and went to London"), ("The river", "Tane")]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "bloom", "gptj"])
def test_the_tokenizers_padding_side_changes_nothing(family):
    left, right = (load((tiny_model(family), tiny_tokenizer(padding_side=side))) for side in ("left", "right"))
    assert score(left, PAIRS) == score(right, PAIRS)
    prompts = [p for p, _ in PAIRS]
    assert generate(left, prompts, max_new_tokens=4) == generate(right, prompts, max_new_tokens=4)
    assert left.tokenizer.padding_side == "left"


def test_a_pad_token_that_is_eos_changes_nothing():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert score(load((tiny_model("gpt2"), tokenizer)), PAIRS) == score(LM, PAIRS)


def test_an_eos_inside_the_text_is_a_token_like_others():
    prompt = encode(PLAIN, "Rome<eos>is").ids
    assert PLAIN.eos_token_id in prompt
    expected = plain_log_probability(LM.model, prompt, target_ids(PLAIN, "Rome<eos>is", "old"))
    assert score(LM, [("Rome<eos>is", "old"), *PAIRS])[0].total == pytest.approx(
        float(expected.detach().sum()), abs=1e-4
    )
