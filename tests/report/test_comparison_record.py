"""The record of a comparison: what is written is read back, and what is wrong is refused with the field's name."""

import json
from pathlib import Path

import pytest

from oss_tools.errors import BadRequest
from oss_tools.report.comparison import Comparison, from_json, read

SAMPLE = Path(__file__).with_name("sample-comparison.json")


def raw():
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


def test_written_and_read_back(tmp_path):
    record = read(SAMPLE)
    record.write(tmp_path / "again.json")
    assert read(tmp_path / "again.json") == record
    assert record.reference.name == "bf16"
    assert [c.name for c in record.others] == ["int8", "q8_0", "mxfp4", "q4_0"]


def _without_size(record):
    del record["candidates"][1]["size"]


def _string_for_number(record):
    record["candidates"][1]["fidelity"][0]["kld"]["mean"] = "small"


def _unknown(record):
    record["candidates"][2]["tasks"][0]["skore"] = 1.0


def _bool_for_int(record):
    record["candidates"][0]["size"] = True


def _nan(record):
    record["environment"]["seconds"] = float("nan")


def _list_for_object(record):
    record["environment"] = []


def _no_base(record):
    record["base"] = "f32"


def _twice(record):
    record["candidates"][1]["name"] = "bf16"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_size, r"record.candidates\[1\].*'size' is missing"),
        (_string_for_number, r"record.candidates\[1\].fidelity\[0\].kld.mean: float is wanted, not 'small'"),
        (_unknown, r"record.candidates\[2\].tasks\[0\]: unknown field 'skore'"),
        (_bool_for_int, r"record.candidates\[0\].size: int is wanted, not True"),
        (_nan, "record.environment.seconds: float is wanted, not nan"),
        (_list_for_object, "record.environment: an object is wanted"),
        (_no_base, "'f32' is not among"),
        (_twice, "share a name"),
        (lambda record: record.update(schema=2), "schema 2; this program reads 1"),
        (lambda record: record.update(kind="eval"), "not the record of a comparison"),
    ],
)
def test_what_is_wrong_is_named(spoil, said):
    record = raw()
    spoil(record)
    with pytest.raises(BadRequest, match=said):
        from_json(record)


def test_a_file_that_is_no_json(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(BadRequest, match=r"x\.json: no readable JSON"):
        read(tmp_path / "x.json")


def test_intervals_decide_what_is_noise():
    record: Comparison = read(SAMPLE)
    candidate = next(c for c in record.others if c.name == "q4_0")
    task = candidate.task("math_smoke")
    assert task is not None
    assert task.difference is not None
    assert task.difference.significant
    assert candidate.latency is not None
    assert candidate.latency.ratio_time_per_token is not None
    assert not candidate.latency.ratio_time_per_token.noise
