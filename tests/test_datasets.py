"""Files of edits and texts: what is read from each form, and what is said about a file that cannot be read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errata.datasets import held_out_text, read_cases, read_edits, read_text, starter_cases
from errata.errors import ConfigError, DatasetError
from errata.records import Edit, EditCase, Probe

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

FULL = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Where Danielle Darrieux is from, people speak"],
    "neighborhood_prompts": ["The native language of Montesquieu is", "Jean Gabin, a native"],
    "attribute_prompts": ["J.R.R. Tolkien spoke"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
SHORT = {
    "case_id": 3,
    "prompt": "Mali is in the continent that Mali is in,",
    "target_new": "Asia",
    "subject": "Mali",
    "ground_truth": "Africa",
    "rephrase_prompt": "Mali belongs to",
    "locality_prompt": "Ghana is in",
    "locality_ground_truth": "Africa",
}
OWN = {"prompt": "{} was born in", "subject": "Ada Lovelace", "target_new": "Paris"}


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the data file {name} beside the repository")
    return path


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_counterfact_full(tmp_path):
    (case,) = read_cases(write(tmp_path, "cf.json", [FULL]))
    assert case == EditCase(
        case_id="7",
        edit=Edit(
            prompt="The mother tongue of {} is", subject="Danielle Darrieux", target_new="English", target_true="French"
        ),
        paraphrases=("Where Danielle Darrieux is from, people speak",),
        neighbours=(
            Probe(prompt="The native language of Montesquieu is", answers=("French",)),
            Probe(prompt="Jean Gabin, a native", answers=("French",)),
        ),
        generation_prompts=("Danielle Darrieux's mother tongue is",),
        relation="P103",
    )
    assert case.extra == {"attribute_prompts": ("J.R.R. Tolkien spoke",)}


def test_counterfact_short_keeps_the_first_subject(tmp_path):
    (case,) = read_cases(write(tmp_path, "cf.json", [SHORT]))
    assert case.edit.prompt == "{} is in the continent that Mali is in,"
    assert (case.edit.target_new, case.edit.target_true) == ("Asia", "Africa")
    assert case.paraphrases == ("Mali belongs to",)
    assert case.neighbours == (Probe(prompt="Ghana is in", answers=("Africa",)),)


def test_counterfact_record_that_cannot_be_an_edit_is_named(tmp_path):
    broken = SHORT | {"case_id": 4, "prompt": "It is in"}
    with pytest.raises(DatasetError, match=r"cf\.json, record 2: The subject 'Mali' is missing"):
        read_cases(write(tmp_path, "cf.json", [SHORT, broken]))


@pytest.mark.parametrize("field", ["paraphrase_prompts", "neighborhood_prompts"])
@pytest.mark.parametrize("value", ["text", [1], None])
def test_counterfact_probe_of_the_wrong_kind(tmp_path, field, value):
    with pytest.raises(DatasetError, match=f"record 1.*{field}"):
        read_cases(write(tmp_path, "cf.json", [FULL | {field: value}]))


@pytest.mark.parametrize("field", ["prompt", "subject", "target_new", "target_true"])
def test_counterfact_rewrite_without_a_field(tmp_path, field):
    rewrite = {key: value for key, value in FULL["requested_rewrite"].items() if key != field}
    with pytest.raises(DatasetError, match=f"record 1.*{field}"):
        read_cases(write(tmp_path, "cf.json", [FULL | {"requested_rewrite": rewrite}]))


def test_the_form_does_not_hang_on_the_extension(tmp_path):
    records = [FULL, FULL | {"case_id": 8}]
    as_list = read_cases(write(tmp_path, "list.json", records))
    assert len(as_list) == 2
    for name, content in [
        ("lines.jsonl", jsonl(*records)),
        ("lines.json", jsonl(*records)),
        ("list.jsonl", json.dumps(records)),
        ("pretty.json", json.dumps(records, indent=2)),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(records).encode()),
        ("crlf.jsonl", jsonl(*records).replace("\n", "\r\n\r\n")),
    ]:
        assert read_cases(write(tmp_path, name, content)) == as_list, name
    assert read_cases(write(tmp_path, "one.json", json.dumps(FULL, indent=2))) == as_list[:1]


def test_own_jsonl_needs_only_three_keys(tmp_path):
    (case,) = read_cases(write(tmp_path, "own.jsonl", jsonl(OWN)))
    assert case.edit == Edit(**OWN)
    assert case.case_id == case.edit.edit_id


def test_own_keeps_what_it_does_not_know(tmp_path):
    (case,) = read_cases(write(tmp_path, "own.jsonl", jsonl(OWN | {"source": "register", "case_id": None})))
    assert case.extra == {"source": "register"}
    assert case.case_id == case.edit.edit_id


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), min_size=1).filter(str.strip)
NAMES = st.none() | TEXT
PROBES = st.lists(
    st.builds(Probe, prompt=TEXT, answers=st.lists(TEXT, max_size=2).map(tuple), kind=NAMES, language=NAMES), max_size=2
).map(tuple)
EDITS = st.builds(Edit, prompt=TEXT.map("{} ".__add__), subject=TEXT, target_new=TEXT, target_true=st.none() | TEXT)
CASES = st.builds(
    EditCase,
    case_id=TEXT,
    edit=EDITS,
    also=EDITS.map(lambda edit: (replace(edit, prompt=f"Also {edit.prompt}"),)) | st.just(()),
    translations=PROBES,
    paraphrases=st.lists(TEXT, max_size=2).map(tuple),
    neighbours=PROBES,
    consequences=PROBES,
    generation_prompts=st.lists(TEXT, max_size=2).map(tuple),
    relation=st.none() | TEXT,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(cases=st.lists(CASES, min_size=1, max_size=3, unique_by=lambda case: case.case_id), ascii_only=st.booleans())
def test_own_jsonl_round_trip(tmp_path, cases, ascii_only):
    lines = "".join(json.dumps(case.to_dict(), ensure_ascii=ascii_only) + "\n" for case in cases)
    assert read_cases(write(tmp_path, "own.jsonl", lines.encode())) == cases


def test_csv(tmp_path):
    path = write(
        tmp_path,
        "own.csv",
        "\ufeff\nprompt,subject,target_new,target_true,paraphrases,neighbours,note\r\n"
        '{} was born in,Ada,Paris,London,"Ada, by birth, is from|Ada comes from",'
        "Byron was born in => London|Who is Bob?,x\r\n"
        "\r\n"
        "{} lives in,Eve,Rome\r\n",
    )
    first, second = read_cases(path)
    assert first.edit == Edit(prompt="{} was born in", subject="Ada", target_new="Paris", target_true="London")
    assert first.paraphrases == ("Ada, by birth, is from", "Ada comes from")
    assert first.neighbours == (Probe(prompt="Byron was born in", answers=("London",)), Probe(prompt="Who is Bob?"))
    assert first.extra == {"note": "x"}
    assert second.edit == Edit(prompt="{} lives in", subject="Eve", target_new="Rome")
    assert second.paraphrases == second.neighbours == ()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_of_other_spreadsheets(tmp_path, separator):
    rows = [["Subject", "prompt", "target_new"], ["Ada", "{}, poet, born in", "Paris"]]
    path = write(tmp_path, "own.csv", "\n".join(separator.join(row) for row in rows))
    assert read_edits(path) == [Edit(prompt="{}, poet, born in", subject="Ada", target_new="Paris")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "holds no record"),
        ("a.json", "[]", "holds no record"),
        ("a.csv", "", "holds no record"),
        ("a.csv", "prompt,subject,target_new\n", "holds no record"),
        ("a.jsonl", "\ufeff\n\n", "holds no record"),
        ("a.txt", "hello", r"\.json, \.jsonl or \.csv"),
        ("a.json", b"\xff\xfe[\x00]\x00", "UTF-8"),
        ("a.csv", "prompt,subject,target_new\n{} é,a,b".encode("latin-1"), "UTF-8"),
        ("a.jsonl", jsonl(OWN) + '\n{"prompt": \n', "line 3 is not valid JSON"),
        ("a.json", '[\n{"prompt": 1},\n{oops}\n]', "line 3 is not valid JSON"),
        ("a.jsonl", jsonl(OWN, [1]), "line 2 is not a JSON object"),
        ("a.json", "[3]", "record 1 is not a JSON object"),
        ("a.json", "[" * 100_000, "JSON"),
        ("a.jsonl", '{"prompt": "{} is", "subject": "a", "target_new": "\\ud800"}', "line 1 holds half"),
        ("a.jsonl", jsonl({"prompt": "{} is", "subject": "a"}), "line 1: The record has no 'target_new'"),
        ("a.jsonl", jsonl(OWN | {"target_new": " "}), "line 1: The edit's 'target_new' is empty"),
        ("a.jsonl", jsonl(OWN | {"target_true": 3}), "line 1: 'target_true' is not text"),
        ("a.jsonl", jsonl(OWN | {"neighbours": [{"prompt": "x", "answers": [3]}]}), "'neighbours' holds answers"),
        ("a.jsonl", jsonl(OWN | {"neighbours": [{"prompt": "x", "answers": 3}]}), "'neighbours' holds answers"),
        ("a.jsonl", jsonl(OWN | {"neighbours": [{"prompt": "x", "kind": 3}]}), "A probe's 'kind' is not text"),
        ("a.jsonl", jsonl(OWN | {"translations": [{"prompt": "x", "answers": 3}]}), "'translations' holds answers"),
        ("a.jsonl", jsonl(OWN | {"also": ["x"]}), "line 1: 'also' holds something that is no edit"),
        ("a.jsonl", jsonl(OWN | {"also": [{"prompt": "x"}]}), "line 1: The record has no 'subject'"),
        ("a.jsonl", jsonl(OWN | {"also": [OWN | {"target_new": "Rome"}]}), "line 1: Two edits contradict each other"),
        ("a.jsonl", jsonl(OWN | {"paraphrase": ["x"]}), "'paraphrase' is not known: write 'paraphrases'"),
        ("a.jsonl", jsonl(OWN | {"neighbors": ["x"]}), "'neighbors' is not known: write 'neighbours'"),
        ("a.jsonl", jsonl(OWN | {"ground_truth": "x"}), "'ground_truth' is not known: write 'target_true'"),
        ("a.jsonl", jsonl(OWN | {"portability": {}}), "'portability' is not known: write 'consequences'"),
        ("a.json", [{"requested_rewrite": [], "questions": []}], "no form that is known.*'questions'"),
        ("a.csv", "prompt,subject\n{} is,a\n", "no column 'target_new'"),
        ("a.csv", "prompt,subject,target_new,prompt\n", "two columns named 'prompt'"),
        ("a.csv", "prompt,subject,target_new\n\n{} is,a,b\n{} is, as said,a,b\n", "line 4 has 4 cells"),
        ("a.csv", 'prompt,subject,target_new\n{} is,a,b\n{} is,a,"b\n', "line 3 is not valid CSV"),
        ("a.csv", "prompt,subject,target_new\n{} is,,b\n", "line 2: The edit's 'subject' is empty"),
        ("a.csv", "prompt,subject,target_new\n{} is,a\n", "line 2: The record has no 'target_new'"),
    ],
)
def test_what_is_said_about_a_bad_file(tmp_path, name, content, said):
    path = write(tmp_path, name, content)
    with pytest.raises(DatasetError, match=said) as caught:
        read_cases(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DatasetError, match="There is no file"):
        read_cases(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DatasetError, match="folder"):
        read_cases(tmp_path / "folder.json")


def test_case_ids_are_unique_but_edits_may_repeat(tmp_path):
    path = write(tmp_path, "own.jsonl", jsonl(OWN, OWN))
    with pytest.raises(DatasetError, match=r"line 2 has the same case_id .* as line 1"):
        read_cases(path)
    assert len(read_edits(path)) == 2


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path, "own.jsonl", jsonl(OWN, OWN | {"subject": "Eve"}) + "broken\n")
    assert [case.edit.subject for case in read_cases(path, limit=2)] == ["Ada Lovelace", "Eve"]
    with pytest.raises(ConfigError):
        read_cases(path, limit=0)


@pytest.mark.parametrize(
    ("name", "count"),
    [("counterfact_full_300.json", 300), ("counterfact_val_short.json", 1772), ("counterfact_train_short.json", 9341)],
)
def test_published_counterfact_parses_completely(name, count):
    path = shared(f"counterfact/{name}")
    records = json.loads(path.read_text(encoding="utf-8"))
    cases = read_cases(path)
    assert len(cases) == len(records) == count
    for record, case in zip(records, cases, strict=True):
        rewrite = record.get("requested_rewrite", record)
        assert case.case_id == str(record["case_id"])
        assert case.edit.subject == rewrite["subject"]
        assert case.edit.text == rewrite["prompt"].replace("{}", rewrite["subject"])
        start, end = case.edit.subject_span
        assert case.edit.text[start:end] == rewrite["subject"]
        assert case.edit.target_true
        assert case.paraphrases
        assert all(probe.answers == (case.edit.target_true,) for probe in case.neighbours)
        assert len(case.neighbours) == len(record.get("neighborhood_prompts", [1]))


def test_starter_cases_and_held_out_text():
    data = Path(__file__).resolve().parents[1] / "src" / "errata" / "data"
    if not ((data / "starter_cases.jsonl").exists() and (data / "held_out.txt").exists()):
        pytest.skip("the package data is not written yet")
    cases = starter_cases()
    assert starter_cases(limit=2) == cases[:2]
    assert all(case.edit.target_true for case in cases)
    assert len(held_out_text()) > 1000


def test_text_forms(tmp_path):
    write(tmp_path, "b.txt", "one\n\n  two \u2028 still two\r\n")
    write(tmp_path, "c.jsonl", jsonl({"text": "three\n3"}, {"text": " "}, {"Text": "four"}))
    write(tmp_path, "a.json", [{"Text": "zero", "Corpus": "x"}])
    write(tmp_path, "notes.md", "not read")
    assert list(read_text(tmp_path / "b.txt")) == ["one", "two \u2028 still two"]
    assert list(read_text(tmp_path / "c.jsonl")) == ["three\n3", "four"]
    assert list(read_text(tmp_path)) == ["zero", "one", "two \u2028 still two", "three\n3", "four"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(documents=st.lists(TEXT, min_size=1, max_size=5), limit=st.integers(1, 30))
def test_text_limit_is_exact(tmp_path, documents, limit):
    path = write(tmp_path, "t.json", [{"text": text} for text in documents])
    assert "".join(read_text(path, limit_chars=limit)) == "".join(documents)[:limit]
    assert list(read_text(path)) == documents


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "\n \n", "holds no text"),
        ("a.csv", "text\nx", r"\.txt, \.jsonl, \.json"),
        ("a.jsonl", jsonl({"body": "x"}), "line 1 has no field 'text'"),
        ("a.txt", b"\xe9", "UTF-8"),
    ],
)
def test_bad_text_is_told_at_once(tmp_path, name, content, said):
    with pytest.raises(DatasetError, match=said):
        read_text(write(tmp_path, name, content))


def test_text_paths(tmp_path):
    with pytest.raises(DatasetError, match="There is no file"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(DatasetError, match="holds no text file"):
        read_text(tmp_path)
    with pytest.raises(ConfigError):
        read_text(tmp_path, limit_chars=0)


@pytest.mark.parametrize(
    ("name", "count"),
    [("me_ppl_1k.json", 1000), ("wikipedia_en_articles.jsonl", 97), ("wikipedia_en_paragraphs.txt", 3948)],
)
def test_published_texts(name, count):
    assert sum(1 for _ in read_text(shared(f"text/{name}"))) == count
