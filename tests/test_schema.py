"""metrics.json and records.jsonl: what is written is read back, and an interruption loses at most one record."""

import json
import math
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from errata.errors import DatasetError, StorageError
from errata.evaluation.intervals import proportion
from errata.evaluation.schema import (
    Cost,
    CostMeter,
    Measured,
    Metric,
    RecordWriter,
    read_metrics,
    versions,
    write_metrics,
)


def measured(**metrics):
    return Measured(
        schema=1,
        what={"verb": "evaluate", "method": "r-rome", "limit": 100, "seed": 0},
        model={"name": "tiny", "fingerprint": "ab", "dtype": "float32", "quantised_origin": None},
        metrics=metrics,
        cost=Cost(cpu_seconds=1.5, wall_seconds=2.0, peak_mb=100.0),
        versions=versions(),
    )


def test_metrics_round_trip(tmp_path):
    written = measured(
        ES=Metric.of(proportion(99, 100), base=0.37),
        PPL=Metric(value=math.inf, low=math.nan, high=math.nan, n=3),
        NS=Metric.of(proportion(0, 0)),
    )
    path = write_metrics(tmp_path / "out", written)
    assert path == tmp_path / "out" / "metrics.json"
    assert read_metrics(tmp_path / "out") == written
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(content) == ["schema", "what", "model", "metrics", "cost", "versions"]
    assert content["schema"] == 1
    assert content["metrics"]["ES"] == {**proportion(99, 100).to_dict(), "base": 0.37}
    assert content["metrics"]["PPL"] == {"value": None, "low": None, "high": None, "n": 3, "base": None}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "names no schema"),
        ("{}", "names no schema"),
        ('{"schema": 2}', "install a newer Errata"),
        ('{"schema": 1}', "malformed at what"),
        ('{"schema": "x"}', "malformed at schema"),
        (b"\xff", "not valid JSON"),
    ],
)
def test_bad_metrics_are_told_in_a_sentence(tmp_path, content, said):
    (tmp_path / "metrics.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=said) as caught:
        read_metrics(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_metric_without_its_n_is_malformed(tmp_path):
    path = write_metrics(tmp_path, measured(ES=Metric.of(proportion(1, 2))))
    content = json.loads(path.read_text())
    del content["metrics"]["ES"]["n"]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"metrics\.ES\.n"):
        read_metrics(tmp_path)


def test_missing_metrics(tmp_path):
    with pytest.raises(DatasetError, match="There is no"):
        read_metrics(tmp_path)


def test_unknown_fields_are_refused_when_written():
    with pytest.raises(ValidationError):
        Metric(value=1, low=0, high=1, n=1, std=0.1)
    with pytest.raises(ValidationError):
        Measured(
            schema=2, what={}, model={}, metrics={}, cost=Cost(cpu_seconds=0, wall_seconds=0, peak_mb=0), versions={}
        )


def test_records_resume(tmp_path):
    with RecordWriter(tmp_path / "out") as writer:
        assert writer.done == {}
        writer.write({"case_id": "a", "nll": math.nan, "pair": (1, 2)})
        # It is in the file before the writer is closed.
        assert writer.path.read_bytes() == b'{"case_id": "a", "nll": null, "pair": [1, 2]}\n'
        first = dict(writer.done)
    with RecordWriter(tmp_path / "out") as writer:
        assert writer.done == first == {"a": {"case_id": "a", "nll": None, "pair": [1, 2]}}
        writer.write({"case_id": "b"})
        with pytest.raises(ValueError, match="already"):
            writer.write({"case_id": "a"})
        with pytest.raises(ValueError, match="no 'case_id'"):
            writer.write({"id": 1})
    assert [json.loads(line)["case_id"] for line in writer.path.read_text().splitlines()] == ["a", "b"]


def test_records_named_by_two_fields(tmp_path):
    with RecordWriter(tmp_path, key=("case_id", "phase")) as writer:
        writer.write({"case_id": 1, "phase": "before"})
        writer.write({"case_id": 1, "phase": "after"})
    with RecordWriter(tmp_path, key=("case_id", "phase")) as writer:
        assert set(writer.done) == {(1, "before"), (1, "after")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(texts=st.lists(st.text(st.characters(), max_size=8), min_size=1, max_size=4), data=st.data())
def test_records_survive_a_cut_at_any_byte(tmp_path, texts, data):
    path = tmp_path / "records.jsonl"
    path.unlink(missing_ok=True)
    records = [{"case_id": i, "text": text} for i, text in enumerate(texts)]
    with RecordWriter(tmp_path) as writer:
        for record in records:
            writer.write(record)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    with RecordWriter(tmp_path) as writer:
        assert len(writer.done) == whole[:cut].count(b"\n")
        assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1]
        for record in records:
            if record["case_id"] not in writer.done:
                writer.write(record)
        assert list(writer.done.values()) == records
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"case_id": 1}\n{oops}\n{"case_id": 2}\n', "line 2 is not a record"),
        ('{"id": 1}\n', "line 1 is not a record"),
        ("[1]\n", "line 1 is not a record"),
        ('{"case_id": []}\n', "line 1 is not a record"),
        ('{"case_id": 1}\n{"case_id": 1}\n', "line 2 repeats"),
    ],
)
def test_records_of_another_kind_are_not_overwritten(tmp_path, content, said):
    path = tmp_path / "records.jsonl"
    path.write_text(content)
    with pytest.raises(DatasetError, match=said):
        RecordWriter(tmp_path)
    assert path.read_text() == content


def test_records_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        RecordWriter(tmp_path / "file" / "below")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_leaves_whole_records(tmp_path):
    # A limit on the size of files stands in for the full disk; it needs a process of its own.
    program = f"""
import resource, signal
from errata.errors import StorageError
from errata.evaluation.schema import RecordWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with RecordWriter({str(tmp_path)!r}) as writer:
    writer.write({{"case_id": 1}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))
    try:
        writer.write({{"case_id": 2, "text": "x" * 100}})
    except StorageError:
        print("told")
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "told\n"
    assert (tmp_path / "records.jsonl").read_text() == '{"case_id": 1}\n'


def test_versions():
    assert set(versions()) == {"errata", "torch", "transformers"}
    assert versions()["errata"][0].isdigit()


def test_cost_counts_children_and_stops_with_the_block():
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    with CostMeter() as meter:
        subprocess.run([sys.executable, "-c", busy], check=True)
        time.sleep(0.05)
    cost = meter.cost(edits=2)
    assert cost.cpu_seconds >= 0.29
    assert cost.wall_seconds >= 0.3
    assert cost.per_edit_cpu_seconds == cost.cpu_seconds / 2
    assert cost.peak_mb > 10
    time.sleep(0.02)
    assert meter.cost().wall_seconds == cost.wall_seconds
    assert meter.cost().per_edit_cpu_seconds is None
