"""Records are read whole or refused in a line; those of every verb."""

import copy
import json
from pathlib import Path

import pytest

from oss_tools.errors import BadRequest
from oss_tools.report.reading import load_sheets
from oss_tools.report.table import blocks, columns, is_best, is_noise, legend, text

HERE = Path(__file__).parent
SAMPLE = HERE / "sample-comparison.json"
RAW = json.loads(SAMPLE.read_text(encoding="utf-8"))
BENCH = HERE.parents[1] / "results" / "bench-small.json"
EVAL = {
    "schema": 1,
    "kind": "eval",
    "model": {"name": "m", "nbytes": 1000},
    "tasks": {
        "sums": {
            "metric": "correct",
            "data_sha256": "ab",
            "scores": {"correct": {"score": 0.5, "low": 0.2, "high": 0.8, "higher_is_better": True}},
            "items": {"sha256": ["a", "b"], "correct": [1, 0]},
        },
        "prose": {
            "metric": "token_perplexity",
            "data_sha256": "cd",
            "scores": {"token_perplexity": {"score": 36.6, "higher_is_better": False}},
            "items": {"sha256": ["a"], "token_perplexity": [[-10.0, 3]]},
        },
    },
    "divergence": {
        "kld": {"mean": 0.01, "stderr": 0.001, "p99": 0.1, "p99.9": 0.2},
        "same_top": {"mean": 0.9, "stderr": None},
    },
}


def written(tmp_path: Path, raw: object) -> Path:
    file = tmp_path / "record.json"
    file.write_text(raw if isinstance(raw, str) else json.dumps(raw), encoding="utf-8")
    return file


def test_records_of_bench_and_eval_share_a_sheet_and_comparisons_have_their_own(tmp_path: Path) -> None:
    compared, other = load_sheets([written(tmp_path, EVAL), SAMPLE, BENCH])
    assert compared.comparison is not None
    model = other.model("m")
    assert model
    assert model.figures["task.sums"].interval.bounds == (0.2, 0.8)
    assert model.figures["task.sums"].items == (1.0, 0.0)
    assert model.figures["perplexity.prose"].value == 36.6
    assert model.figures["kld.p99_9"].value == 0.2
    peer = other.model("small.gguf (llama.cpp)")
    ours = other.model("small.gguf")
    assert ours
    assert peer
    measured = json.loads(BENCH.read_text())["models"][0]["contenders"]["oss-tools"]["results"]
    assert ours.figures["peer_ratio"].value == next(r["ratio"]["median"] for r in measured if r["kind"] == "generate")
    assert "peer_ratio" not in peer.figures


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("{", "no readable JSON"),
        ("[" * 200_000, "no readable JSON"),
        ("[]", "no record of bench, eval or compare"),
        ({"kind": "download"}, "no record of bench, eval or compare"),
        ({"kind": ["bench"]}, "no record of bench, eval or compare"),
        ({"kind": "bench", "schema": 2}, "schema 2, this program reads 1; a newer oss-tools reads it"),
        ({"kind": "comparison"}, "schema None, this program reads 1; make the record again"),
        ({"kind": "bench", "schema": 1}, "record: the field 'models' is missing"),
        ({"kind": "bench", "schema": 1, "models": {}}, "record.models: a list is wanted"),
        (
            {"kind": "bench", "schema": 1, "models": [{"model": "x", "bytes": -1, "contenders": {}}]},
            r"record.models\[0\].bytes: a number above 0",
        ),
        ('{"kind": "bench", "schema": 1, "models": NaN}', "NaN is no figure"),
        (f'{{"kind": "bench", "schema": 1, "models": {"9" * 5000}}}', "a number of 5000 digits"),
        ({"kind": "eval", "schema": 1, "model": {"name": ""}, "tasks": {}}, "record.model.name: 1 to 200 characters"),
        ({"kind": "eval", "schema": 1, "model": 3, "tasks": {}}, "record.tasks|record.model"),
    ],
)
def test_a_damaged_record_is_refused_in_a_line(tmp_path: Path, raw: object, said: str) -> None:
    file = written(tmp_path, raw)
    with pytest.raises(BadRequest, match=said) as refused:
        load_sheets([file])
    assert str(refused.value).startswith(f"{file}: ")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def _sizes(record) -> None:
    record["candidates"][1]["size"] = -1


def _items(record) -> None:
    record["candidates"][1]["tasks"][0]["items"].pop()


def _interval(record) -> None:
    record["candidates"][1]["fidelity"][0]["kld"]["low"] = 1.0


def _name(record) -> None:
    record["candidates"][1]["name"] = "x" * 1000


def _many(record) -> None:
    record["candidates"] = [{**record["candidates"][0], "name": str(n)} for n in range(101)]
    record["base"] = "0"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_sizes, r"record.candidates\[1\].size: -1 is less than 0"),
        (_items, r"candidates\[1\].tasks\[0\]: 59 items and 60 hashes for n = 60"),
        (_interval, "the interval of kld.mean ends before it begins"),
        (_name, r"candidates\[1\].name: 1 to 200 characters are wanted, not 1000"),
        (_many, "101 candidates are too many"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(tmp_path: Path, damage, said: str) -> None:
    record = copy.deepcopy(RAW)
    damage(record)
    with pytest.raises(BadRequest, match=said):
        load_sheets([written(tmp_path, record)])


def test_the_table_is_sorted_by_size_and_marks_the_best_and_noise() -> None:
    (sheet,) = load_sheets([SAMPLE])
    assert [model.name for model in sheet.models] == ["bf16", "int8", "q8_0", "q4_0", "mxfp4"]
    by_name = {model.name: model for model in sheet.models}
    assert is_best(sheet, by_name["mxfp4"], "size")
    assert not is_best(sheet, by_name["q4_0"], "size")
    assert is_best(sheet, by_name["q4_0"], "tokens_per_second")
    assert is_noise(by_name["int8"], "task.math_smoke")
    assert not is_noise(by_name["q4_0"], "task.math_smoke")
    assert not is_noise(by_name["q4_0"], "time_per_token")
    assert "~85.0 %" in text(sheet, 300)
    assert "*5.4 MB" in text(sheet, 300)
    assert legend(sheet).startswith("* the best, by evidence; ~ no evidence of a difference from bf16 (base)")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_tables_fit_their_width_and_lose_no_column(width: int) -> None:
    (sheet,) = load_sheets([SAMPLE])
    assert [metric for block in blocks(sheet, width) for metric in block] == columns(sheet)
    tables = [line for line in text(sheet, width).splitlines() if line.startswith(("bf16", "mxfp4", "model "))]
    assert max(map(len, tables)) <= width
