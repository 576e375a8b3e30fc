"""Judging text: what counts as the same answer, where an answer ends, and how repetitive a text is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.evaluation.fluency import TOKENS, ngram_entropy
from errata.evaluation.judges import contains_answer, first_answer, normalise, same_answer, strict_success

TEXT = st.text(max_size=40)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  The Eiffel\n Tower. ", "eiffel tower"),
        ("“Paris”", "paris"),
        ("**Paris**", "paris"),
        ("ＰＡＲＩＳ！", "paris"),
        ("STRASSE", normalise("Straße")),
        ("Hepatitis A", "hepatitis a"),
        ("A", "a"),
        ("The", "the"),
        ("C#", "c#"),
        ("C++", "c++"),
        ("50%", "50%"),
        ("...", "..."),
        ("", ""),
        (" \n", ""),
    ],
)
def test_normalise(text, wanted):
    assert normalise(text) == wanted


@given(TEXT)
def test_normalise_twice_is_once(text):
    assert normalise(normalise(text)) == normalise(text)


@given(TEXT)
def test_normalise_loses_no_text_altogether(text):
    assert bool(normalise(text)) == bool(text.strip())


@pytest.mark.parametrize(
    ("generated", "wanted"),
    [
        (" Paris. It is the capital", "Paris"),
        (" Paris\nQ: next", "Paris"),
        ("\n\nParis\n", "Paris"),
        ("Paris", "Paris"),
        ("Paris!", "Paris"),
        ('"Paris." He said', '"Paris'),
        ("the U.S. and Canada. They", "the U.S. and Canada"),
        ("He lives in the U.S.", "He lives in the U.S."),
        ("3.14 is pi. Yes", "3.14 is pi"),
        ("In 2019. Then", "In 2019"),
        ("It was 7. Then", "It was 7"),
        ("St. Louis, Missouri. The", "St. Louis, Missouri"),
        ("J. R. R. Tolkien. He", "J. R. R. Tolkien"),
        ("George W. Bush", "George W. Bush"),
        ("at 5 p.m. on Monday. Next", "at 5 p.m. on Monday"),
        ("example.com is a site. It", "example.com is a site"),
        ("Paris... and more", "Paris"),
        ("What? Paris", "What"),
        ("巴黎。它是首都", "巴黎"),
        (". Paris", ""),
        ("", ""),
    ],
)
def test_first_answer(generated, wanted):
    assert first_answer(generated) == wanted


@given(TEXT)
def test_first_answer_stands_in_one_line_of_the_generation(generated):
    answer = first_answer(generated)
    assert answer in generated
    assert len(answer.splitlines()) <= 1


@pytest.mark.parametrize(
    ("generated", "target", "wanted"),
    [
        (" Paris, the capital", "Paris", True),
        (" paris.", "Paris", True),
        (" Parisian cafés", "Paris", False),
        ("in Paris", "Paris", False),
        ("The United States of America", "United States", True),
        ("the U.S. is", "U.S.", True),
        ("Paris's mayor", "Paris", True),
        ("3.14 or so", "3", False),
        ("3. The next", "3", True),
        ("1,000 men", "1", False),
        ("19690", "1969", False),
        ("cafe\u0301s", "cafe", False),
        ("C is older", "C++", False),
        ("C++ and Java", "C++", True),
        ("巴黎是法国的首都", "巴黎", True),
        ("Par", "Paris", False),
        ("", "Paris", False),
        ("Paris", " ", False),
    ],
)
def test_strict_success(generated, target, wanted):
    assert strict_success(generated, target) is wanted


@given(TEXT.filter(str.strip), TEXT)
def test_a_target_followed_by_a_new_sentence_succeeds(target, rest):
    assert strict_success(target, target)
    assert contains_answer(target, [target])
    if normalise(f"{target}\n{rest}").startswith(normalise(target) + " "):
        assert strict_success(f"{target}\n{rest}", target)


@given(TEXT, TEXT)
def test_strict_success_implies_containment(generated, target):
    if strict_success(generated, target):
        assert contains_answer(generated, [target])


def test_contains_answer():
    assert contains_answer("She works in the city of Paris, France.", ["London", "paris"])
    assert contains_answer("Parisians love Paris", ["Paris"])
    assert not contains_answer("Parisians only", ["Paris"])
    assert not contains_answer("comparison", ["paris"])
    assert not contains_answer("anything", [])
    assert not contains_answer("anything", ["", " "])
    assert contains_answer("我在巴黎住", ["巴黎"])


def test_same_answer():
    assert same_answer(" Paris. It is big", "paris\nA city")
    assert not same_answer("Paris", "London")
    assert same_answer("", "\n")


@given(TEXT)
def test_locality_before_against_before_is_perfect(text):
    assert same_answer(text, text)


@given(st.integers(0, 200))
def test_entropy_of_distinct_words(count):
    expected = math.log2(max(count - 1, 1)) / 3 + 2 * math.log2(max(count - 2, 1)) / 3
    assert ngram_entropy(" ".join(f"w{i}" for i in range(count))) == pytest.approx(expected)


def test_entropy_of_a_constant_text_is_zero():
    assert ngram_entropy("word " * 50) == 0.0
    assert ngram_entropy("") == 0.0


@given(st.text(max_size=200))
def test_entropy_is_bounded_by_that_of_distinct_words(text):
    words = len(TOKENS.findall(text))
    most = math.log2(max(words - 1, 1)) / 3 + 2 * math.log2(max(words - 2, 1)) / 3
    assert -1e-12 <= ngram_entropy(text) <= most + 1e-9


def test_entropy_by_hand():
    # a b a b: bigrams ab ba ab -> (2/3, 1/3); trigrams aba bab -> 1 bit.
    bigrams = 2 / 3 * math.log2(3 / 2) + math.log2(3) / 3
    assert ngram_entropy("a b a b") == pytest.approx(bigrams / 3 + 2 / 3)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't go.", ["Do", "n't", "go", "."]),
        ("Paris's 3.14, 1,000!", ["Paris", "'s", "3.14", ",", "1,000", "!"]),
        ("a well-known U.S. fact...", ["a", "well-known", "U.S.", "fact", "..."]),
        ("(“yes”)", ["(", "“", "yes", "”", ")"]),
        ("巴黎 is", ["巴", "黎", "is"]),
        ("I can’t", ["I", "ca", "n’t"]),
    ],
)
def test_tokens(text, tokens):
    assert TOKENS.findall(text) == tokens
