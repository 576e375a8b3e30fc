"""The published sets: each form is recognised by its content, and becomes cases with every probe it has."""

import json
from pathlib import Path

import pytest

import errata
from errata.datasets import mzsre, read_cases, read_edits
from errata.errors import ConfigError, DatasetError
from errata.records import Edit, Probe

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

ZSRE = {
    "subject": "Lake Orrin",
    "src": "Which river flows out of Lake Orrin?",
    "pred": "Tamber",
    "rephrase": "What river leaves Lake Orrin?",
    "alt": "Wessel",
    "answers": ["Tamber", "River Tamber"],
    "loc": "nq question: who painted the old bridge",
    "loc_ans": "Mara Quist",
    "cond": "Tamber >> Wessel || Which river flows out of Lake Orrin?",
}
MZSRE = {
    "en": {
        "subject": "Lake Orrin",
        "src": "Which river flows out of Lake Orrin?",
        "rephrase": "What river leaves Lake Orrin?",
        "alt": "Wessel",
        "loc": "nq question: who painted the old bridge",
        "loc_ans": "Mara Quist",
        "portability": {"New Question": "Into which sea does Lake Orrin drain?", "New Answer": "the Veil Sea"},
    },
    "fr": {
        "subject": "lac d'Orrin",
        "src": "Quelle rivière sort du Lac d’Orrin ?",
        "rephrase": "Quel cours d'eau quitte le lac d'Orrin ?",
        "alt": "la Wessel",
        "loc": "qui a peint le vieux pont",
        "loc_ans": "Mara Quist",
        "portability": {
            "New Question": "Dans quelle mer le lac d'Orrin se jette-t-il ?",
            "New Answer": "la mer du Voile",
        },
    },
    "th": {
        "subject": "ทะเลสาบออร์ริน",
        "src": "แม่น้ำใดไหลออกจาก Lake Orrin",
        "rephrase": "แม่น้ำใดออกจากทะเลสาบออร์ริน",
        "alt": "เวสเซล",
        "loc": "ใครวาดสะพานเก่า",
        "loc_ans": "มารา",
        "portability": {"New Question": "ทะเลสาบออร์รินไหลลงทะเลใด", "New Answer": "ทะเลเวล"},
    },
    "cz": {
        "subject": "Orrinské jezero",
        "src": "Která řeka vytéká z Orrinského jezera?",
        "rephrase": "Jaká řeka opouští Orrinské jezero?",
        "alt": "Wessel",
        "loc": "kdo namaloval starý most",
        "loc_ans": "Mara Quist",
    },
}
KNOWEDIT = {
    "case_id": 4,
    "prompt": "The river that flows out of Lake Orrin is",
    "subject": "Lake Orrin",
    "target_new": "Wessel",
    "ground_truth": "<|endoftext|>",
    "portability": {
        "Subject_Aliasing": {"prompt": ["The river that leaves the Orrin is"], "ground_truth": ["Wessel"]},
        "reasoning": {"prompt": ["The sea below Lake Orrin is"], "ground_truth": [["the Veil Sea", "Veil Sea"]]},
    },
    "locality": {
        "Relation_Specificity": {
            "prompt": ["Lake Orrin lies in", "The depth of it is"],
            "ground_truth": ["Norr", "9 m"],
        }
    },
}
PUBLISHED_KNOWEDIT = {
    "subject": "Lake Orrin",
    "prompt": "The river that flows out of Lake Orrin is",
    "rephrase_prompt": "Lake Orrin drains into",
    "target_new": "Wessel",
    "ground_truth": ["Tamber"],
    "portability": {
        "Subject_Aliasing": [{"prompt": "The river that leaves the Orrin is", "ground_truth": ["Wessel"]}],
        "Reasoning": [{"prompt": "The sea below Lake Orrin is", "ground_truth": [["the Veil Sea", "Veil Sea"]]}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Lake Orrin lies in", "ground_truth": ["Norr"]},
            {"prompt": "The depth of it is", "ground_truth": ["9 m"]},
        ]
    },
}
QAEDIT = {
    "id": 12,
    "source": "TQA",
    "prompt": "Which river flows out of Lake Orrin?",
    "target": "Tamber",
    "subject": "Lake Orrin",
    "rephrase": "What river leaves Lake Orrin?",
    "locality": [
        {"loc": "who painted the old bridge", "loc_ans": "Mara Quist"},
        {"loc": "where is Norr?", "loc_ans": "far"},
    ],
}


def rewrite(prompt: str, subject: str, new: str, true: str) -> dict:
    return {
        "prompt": prompt,
        "relation_id": "P1",
        "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
        "subject": subject,
        "question": "unused",
    }


MQUAKE = {
    "case_id": 9,
    "requested_rewrite": [
        rewrite("{} flows into", "The Tamber", "the Veil Sea", "the Salt Sea"),
        rewrite("{} is deepest at", "The Veil Sea", "Cape Harl", "Port Min"),
    ],
    "questions": ["Where is the sea of the Tamber deepest?", "At which place?", "What is its deepest place?"],
    "answer": "Port Min",
    "answer_alias": ["Min"],
    "new_answer": "Cape Harl",
    "new_answer_alias": ["Harl", "Cape Harl"],
    "single_hops": [],
    "new_single_hops": [
        {"question": "?", "cloze": "The Tamber flows into", "answer": "the Veil Sea", "answer_alias": ["Veil"]},
        {"question": "?", "cloze": "The Veil Sea is deepest at", "answer": "Cape Harl", "answer_alias": []},
    ],
    "orig": {},
}


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the data file {name} beside the repository")
    return path


@pytest.fixture
def write(tmp_path):
    def written(*records):
        path = tmp_path / "set.json"
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        return path

    return written


def test_zsre_writes_the_right_answer_as_rome_does(write):
    first, second = read_cases(write(ZSRE, ZSRE))
    assert first.edit == Edit(
        prompt="Which river flows out of {}?", subject="Lake Orrin", target_new="Tamber", target_true=None
    )
    assert first.paraphrases == ("What river leaves Lake Orrin?",)
    assert first.neighbours == (
        Probe(prompt="nq question: who painted the old bridge?", answers=("Mara Quist",), kind="unrelated"),
    )
    assert (first.case_id, second.case_id) == ("0", "1")


def test_zsre_writes_the_other_answer_as_mend_does_and_leaves_out_records_without_one(write):
    path = write(ZSRE, ZSRE | {"alt": ""}, ZSRE | {"case_id": "x"})
    first, last = read_cases(path, zsre_target="alt")
    assert (first.edit.target_new, first.edit.target_true) == ("Wessel", "Tamber")
    assert (first.case_id, last.case_id) == ("0", "x")
    assert read_edits(path, zsre_target="alt") == [first.edit, last.edit]
    assert len(read_edits(path)) == 3


def test_mzsre_edits_in_english_alone_by_default(write):
    (case,) = read_cases(write(MZSRE))
    assert case.edit == Edit(prompt="Which river flows out of {}?", subject="Lake Orrin", target_new="Wessel")
    assert case.consequences == (
        Probe(prompt="Into which sea does Lake Orrin drain?", answers=("the Veil Sea",), kind="one_hop"),
    )
    assert case.translations == ()
    assert [probe.language for probe in case.neighbours] == [None]


def test_mzsre_is_tested_in_the_languages_asked_for_each_with_its_own_answers(write):
    path = write(MZSRE)
    (case,) = read_cases(path, language="fr", test_languages=["en", "fr", "cz"])
    assert (case.edit.prompt, case.edit.subject) == ("Quelle rivière sort du {} ?", "Lac d’Orrin")
    assert case.edit.text == MZSRE["fr"]["src"]
    assert [(p.language, p.kind, p.answers) for p in case.translations] == [
        ("en", "rewrite", ("Wessel",)),
        ("en", "paraphrase", ("Wessel",)),
        ("cz", "rewrite", ("Wessel",)),
        ("cz", "paraphrase", ("Wessel",)),
    ]
    assert [(p.language, p.prompt) for p in case.neighbours] == [
        (None, "qui a peint le vieux pont?"),
        ("en", "nq question: who painted the old bridge?"),
        ("cz", "kdo namaloval starý most?"),
    ]
    assert [(p.language, p.answers) for p in case.consequences] == [
        (None, ("la mer du Voile",)),
        ("en", ("the Veil Sea",)),
    ]
    assert read_edits(path, language="fr") == [case.edit]


def test_a_question_without_its_mark_gets_the_one_of_its_script(write):
    version = {**MZSRE["en"], "loc": "老桥是谁画的", "src": "Lake Orrin 流出哪条河？"}
    (case,) = read_cases(write({"zh": version}), language="zh")
    assert (case.neighbours[0].prompt, case.edit.prompt) == ("老桥是谁画的？", "{} 流出哪条河？")


def test_mzsre_takes_the_english_subject_where_the_translated_one_is_missing_and_else_the_question(write):
    path = write(MZSRE)
    (thai,) = read_cases(path, language="th")
    assert (thai.edit.prompt, thai.edit.subject) == ("แม่น้ำใดไหลออกจาก {}?", "Lake Orrin")
    (czech,) = read_cases(path, language="cz")
    assert (czech.edit.prompt, czech.edit.subject) == ("{}?", "Která řeka vytéká z Orrinského jezera")
    assert mzsre.locate("???", ["x"]) == (0, 3)


@pytest.mark.parametrize("record", [KNOWEDIT, PUBLISHED_KNOWEDIT])
def test_knowedit_keeps_the_types_of_its_probes(write, record):
    (case,) = read_cases(write(record))
    assert case.edit.prompt == "The river that flows out of {} is"
    assert case.edit.target_true == ("Tamber" if record is PUBLISHED_KNOWEDIT else None)
    assert case.paraphrases == (("Lake Orrin drains into",) if record is PUBLISHED_KNOWEDIT else ())
    assert case.consequences == (
        Probe(prompt="The river that leaves the Orrin is", answers=("Wessel",), kind="subject_aliasing"),
        Probe(prompt="The sea below Lake Orrin is", answers=("the Veil Sea", "Veil Sea"), kind="reasoning"),
    )
    assert case.neighbours == (
        Probe(prompt="Lake Orrin lies in", answers=("Norr",), kind="relation_specificity"),
        Probe(prompt="The depth of it is", answers=("9 m",), kind="relation_specificity"),
    )


def test_qaedit_is_named_by_source_and_id(write):
    first, second = read_cases(write(QAEDIT, QAEDIT | {"source": "NQ"}))
    assert (first.case_id, second.case_id) == ("TQA-12", "NQ-12")
    assert first.edit == Edit(prompt="Which river flows out of {}?", subject="Lake Orrin", target_new="Tamber")
    assert [probe.prompt for probe in first.neighbours] == ["who painted the old bridge?", "where is Norr?"]


def test_mquake_holds_all_rewrites_the_questions_and_the_chain(write):
    path = write(MQUAKE)
    (case,) = read_cases(path)
    assert case.edits == (
        Edit(prompt="{} flows into", subject="The Tamber", target_new="the Veil Sea", target_true="the Salt Sea"),
        Edit(prompt="{} is deepest at", subject="The Veil Sea", target_new="Cape Harl", target_true="Port Min"),
    )
    assert [probe.kind for probe in case.consequences] == ["multi_hop"] * 3 + ["hop"] * 2
    assert case.consequences[0].answers == ("Cape Harl", "Harl")
    assert case.consequences[3] == Probe(prompt="The Tamber flows into", answers=("the Veil Sea", "Veil"), kind="hop")
    assert read_edits(path) == list(case.edits)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (ZSRE | {"src": "Which river?"}, "record 1: The subject 'Lake Orrin' is missing"),
        (ZSRE | {"answers": []}, "record 1: The zsRE field 'answers' holds no answer"),
        (ZSRE | {"loc": 3}, "record 1: The zsRE field 'loc' is missing, not text or empty"),
        (ZSRE | {"loc_ans": [3]}, "record 1: The zsRE field 'loc_ans' holds 3"),
        ({"en": MZSRE["en"] | {"portability": "x"}}, "record 1: The MzsRE field 'portability' is not an object"),
        ({"de": MZSRE["en"]}, "record 1: The record has no language 'en': choose among de"),
        (KNOWEDIT | {"portability": ["x"]}, "record 1: The KnowEdit field 'portability' is not an object"),
        (KNOWEDIT | {"portability": {"a": {"prompt": ["x", "y"], "ground_truth": ["z"]}}}, "'a' does not hold"),
        (KNOWEDIT | {"portability": {"a": "x"}}, "record 1: The KnowEdit type 'a' does not hold"),
        (QAEDIT | {"locality": [3]}, "record 1: The QAEdit field 'locality' is not a list of objects"),
        (MQUAKE | {"requested_rewrite": []}, "record 1: The MQuAKE field 'requested_rewrite' holds no rewrite"),
        (MQUAKE | {"requested_rewrite": [{"prompt": "{} is"}]}, "record 1: The MQuAKE field 'target_new'"),
        (
            MQUAKE | {"requested_rewrite": [rewrite("{} is", "a", "b", "c"), rewrite("{} is", "a", "d", "c")]},
            "record 1: Two edits contradict each other",
        ),
    ],
)
def test_what_is_said_about_a_published_record_that_is_broken(write, record, said):
    path = write(record)
    with pytest.raises(DatasetError, match=said) as caught:
        read_cases(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "options", "said"),
    [
        (QAEDIT, {"language": "zh"}, "no versions in several languages"),
        (ZSRE, {"test_languages": ["zh"]}, "no versions in several languages"),
        (MZSRE, {"zsre_target": "alt"}, "not zsRE in MEND's form"),
        (ZSRE, {"zsre_target": "pred"}, "no zsre_target 'pred'"),
    ],
)
def test_an_option_that_means_nothing_to_the_form_is_refused(write, record, options, said):
    with pytest.raises(ConfigError, match=said):
        read_cases(write(record), **options)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("zsre/zsre_train_1k.json", 1000),
        ("zsre/mzsre_400_12lang.json", 400),
        ("knowedit/knowedit_zsre_700.json", 700),
        ("knowedit/knowedit_wiki_counterfact_450.json", 450),
        ("qaedit/qaedit_500.json", 500),
        ("mquake/mquake_cf_354.json", 354),
    ],
)
def test_published_sets_parse_completely(name, count):
    path = shared(name)
    records = json.loads(path.read_text(encoding="utf-8"))
    cases = read_cases(path)
    assert len(cases) == len(records) == count
    for record, case in zip(records, cases, strict=True):
        record = record.get("en", record)
        for edit, asked in zip(case.edits, record.get("requested_rewrite", [record]), strict=True):
            question = (asked.get("prompt") or asked["src"]).strip()
            assert edit.text.rstrip("?") == question.replace("{}", asked["subject"], 1).rstrip("?")
            start, end = edit.subject_span
            assert edit.text[start:end] == edit.subject == asked["subject"].strip()
        assert case.neighbours or case.consequences
        assert all(probe.answers and probe.kind for probe in (*case.neighbours, *case.consequences))


@pytest.mark.parametrize("language", ["zh", "cz", "de", "du", "es", "fr", "pt", "ru", "th", "tr", "vi"])
def test_every_language_of_the_published_mzsre_can_be_edited(language):
    path = shared("zsre/mzsre_400_12lang.json")
    records = json.loads(path.read_text(encoding="utf-8"))
    for record, case in zip(records, read_cases(path, language=language, test_languages=["en"]), strict=True):
        assert case.edit.text.rstrip("?") == record[language]["src"].strip().rstrip("?")
        assert len(case.translations) == len(case.neighbours) == len(case.consequences) == 2


def test_edits_that_hold_together_are_one_patch_and_all_of_it_is_measured(write, tmp_path):
    from errata.lm import load
    from errata.testing import tiny

    single = {**MQUAKE, "case_id": 10, "requested_rewrite": MQUAKE["requested_rewrite"][:1]}
    cases = read_cases(write(MQUAKE, single))
    lm = load(tiny("llama"))
    options = {"method": "r-rome", "config": {"corpus": "identity", "steps": 2, "contexts": 1}, "fluency_cases": 0}
    measured = errata.evaluate(lm, cases, out=tmp_path / "single", **options)
    lines = [json.loads(line) for line in (tmp_path / "single" / "records.jsonl").read_text().splitlines()]
    after = {line["case_id"]: line for line in lines if line["phase"] == "after"}
    assert [len(after[name]["method_notes"]["edits"]) for name in ("9", "10")] == [2, 1]
    assert [len(after[name]["said"]["rewrite"]) for name in ("9", "10")] == [2, 1]
    base = next(line for line in lines if line["case_id"] == "9")
    assert base["also"] == [cases[0].also[0].to_dict()]
    question = after["9"]["said"]["consequences"][0]
    assert "asked_answer" in question
    assert "answer" not in question
    assert (question["answers"], question["kind"]) == (["Cape Harl", "Harl"], "multi_hop")
    assert {"multi_hop_accuracy", "instance_accuracy", "portability_contains", "ES"} <= set(measured.metrics)

    together = errata.evaluate(lm, cases, protocol="batch", out=tmp_path / "batch", **options)
    patch = errata.Patch.from_pretrained(tmp_path / "batch" / "patch")
    assert tuple(patch.edits) == cases[0].edits  # the edit that both cases ask for stands once
    assert together.metrics["ES"].n == 2
