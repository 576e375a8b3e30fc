"""The packaged starter cases and held-out text keep their promises; no model is needed."""

import json
import re
from importlib import resources

import pytest

from errata.records import EditCase


def packaged(name: str) -> str:
    return (resources.files("errata.data") / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return [EditCase.from_dict(json.loads(line)) for line in packaged("starter_cases.jsonl").splitlines()]


@pytest.fixture(scope="module")
def held_out() -> str:
    return packaged("held_out.txt")


def mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def test_there_are_enough_cases_and_relations(cases):
    assert len(cases) >= 100
    assert len({case.relation for case in cases if case.relation}) >= 12


def test_ids_and_questions_are_unique(cases):
    assert len({case.case_id for case in cases}) == len(cases)
    assert len({(case.edit.prompt, case.edit.subject) for case in cases}) == len(cases)


def test_each_line_is_in_the_form_that_errata_writes(cases):
    lines = packaged("starter_cases.jsonl").splitlines()
    assert [case.to_dict() for case in cases] == [json.loads(line) for line in lines]


def test_each_case_is_complete(cases):
    for case in cases:
        edit = case.edit
        assert edit.target_true, case.case_id
        assert edit.target_true.casefold() != edit.target_new.casefold(), case.case_id
        assert edit.target_true.casefold() not in edit.subject.casefold(), case.case_id
        assert case.relation, case.case_id
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", case.relation), case.case_id
        assert len(case.paraphrases) == len(set(case.paraphrases)) == 2, case.case_id
        assert len({probe.prompt for probe in case.neighbours}) == len(case.neighbours) == 3, case.case_id
        assert len(case.consequences) == 1, case.case_id
        assert len(case.generation_prompts) == 2, case.case_id


def test_paraphrases_hold_the_subject_and_differ_from_the_prompt(cases):
    for case in cases:
        for paraphrase in case.paraphrases:
            assert case.edit.subject in paraphrase, case.case_id
            assert paraphrase != case.edit.text, case.case_id


def test_neighbours_are_about_something_else(cases):
    for case in cases:
        for probe in case.neighbours:
            assert not mentions(probe.prompt, case.edit.subject), case.case_id
            assert probe.answers, case.case_id
            assert probe.answers[0].casefold() != case.edit.target_new.casefold(), case.case_id


def test_consequences_have_an_answer(cases):
    for case in cases:
        assert case.consequences[0].answers, case.case_id
        assert case.edit.subject in case.consequences[0].prompt, case.case_id


def test_no_prompt_ends_in_a_blank_or_keeps_a_slot(cases):
    for case in cases:
        probes = [probe.prompt for probe in (*case.neighbours, *case.consequences)]
        for prompt in (case.edit.text, *case.paraphrases, *probes, *case.generation_prompts):
            assert prompt == prompt.strip(), case.case_id
            assert "{}" not in prompt, case.case_id


def test_the_subject_stands_at_different_places(cases):
    at_start = sum(case.edit.prompt.startswith("{}") for case in cases)
    assert 0.1 * len(cases) < at_start < 0.6 * len(cases)


def test_held_out_text_is_long_enough(held_out):
    assert len(held_out.split()) >= 3000
    assert all(line.strip() for line in held_out.splitlines())


def test_held_out_text_is_not_about_the_cases(cases, held_out):
    assert [case.edit.subject for case in cases if mentions(held_out, case.edit.subject)] == []
