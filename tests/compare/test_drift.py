"""Drift: the same tokens behind more and more context, by checkpoint, cache format and program."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.compare.drift import KINDS, measure, windows
from oss_tools.engine.engine import Engine
from oss_tools.errors import BadRequest
from oss_tools.report.axes import Axis
from oss_tools.report.comparison import read
from oss_tools.report.drift import written
from oss_tools.report.fidelity import Drift, DriftPoint
from oss_tools.report.gates import judge
from oss_tools.report.lines import Series, lines
from oss_tools.report.metrics import Interval
from oss_tools.report.rules import parse_gate
from oss_tools.report.sheet import sheet_of
from oss_tools.resources import resource

TINY = resource("tiny/checkpoint")
DEPTHS = (0, 40, 700)


@pytest.fixture(scope="module")
def engine():
    with Engine.load(TINY, threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize("deepest", [0, 40, 5000, 60000])
def test_the_same_tokens_are_predicted_behind_so_many_others(engine: Engine, deepest: int) -> None:
    found = windows(engine.text, deepest, 5)
    assert len({place.scored for place in found}) == 5
    for place in found:
        assert len(place.before) == deepest
        for depth in (0, deepest // 2, deepest):
            tokens, start = place.at(depth)
            assert tokens[start:] == list(place.scored[:-1])
            assert start == len(place.first) + depth
            if depth:
                assert tokens[len(place.first) : start] == list(place.before[-depth:])
        said = " ".join(map(str, place.scored[:16]))
        assert said not in " ".join(map(str, place.before)), "what is to be predicted does not stand in its context"


def test_the_divergence_is_that_of_the_logits(engine: Engine) -> None:
    with Engine.load(TINY, threads=1, activations="f32") as other:
        places = windows(engine.text, max(DEPTHS), 2)
        points = measure(engine, other, places, DEPTHS)
        assert [point.depth for point in points] == list(DEPTHS)
        for point in points:
            expected = []
            for place in places:
                tokens, start = place.at(point.depth)
                p, q = (one.logits(tokens)[start:].astype(np.float64) for one in (engine, other))
                p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (p, q))
                p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
                expected += (p * np.log(p / q)).sum(-1).tolist()
            assert point.positions == len(expected) == 2 * 127
            assert point.kld.value == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-7)
            assert point.kld.low is not None
            assert 0 <= point.kld.low <= point.kld.value <= point.kld.high


@pytest.mark.slow
def test_the_caches_format_can_be_chosen(engine: Engine) -> None:
    places = windows(engine.text, 300, 2)
    with Engine.load(TINY, threads=1, cache="bf16") as same, Engine.load(TINY, threads=1, cache="f32") as whole:
        assert same.backend.element == engine.backend.element == "bf16"
        assert whole.backend.element == "f32"
        assert [point.kld.value for point in measure(engine, same, places, (0, 300))] == [0.0, 0.0]
        rounded = measure(whole, engine, places, (0, 300))
        assert all(0 < point.kld.value < 0.05 for point in rounded)
    with (
        Engine.load(TINY, threads=1, activations="f32") as exact,
        Engine.load(TINY, threads=1, activations="f32", cache="bf16") as half,
    ):
        assert exact.backend.position_bytes(exact.architecture, exact.backend.options) > half.backend.position_bytes(
            half.architecture, half.backend.options
        )
        assert measure(exact, half, places, (300,))[0].kld.value > 0


def test_formats_that_there_are_not() -> None:
    with pytest.raises(BadRequest, match="no format named 'q8_0'; did you mean q8"):
        Engine.load(TINY, threads=1, cache="q8_0")
    with pytest.raises(BadRequest, match=r"the kernels on the CPU \(--backend numba\), not for torch"):
        Engine.load(TINY, threads=1, backend="torch", cache="bf16")


def compare(output: Path, *more: str):
    arguments = ["compare", "tiny", "--formats", "bf16,q4_0", "--suites", "", "--repeat", "0", "--chunks", "2", "-t", "1"]
    return CliRunner().invoke(app, [*arguments, "-o", str(output), *more])


@pytest.mark.slow
def test_drift_is_a_part_of_a_comparison(tmp_path: Path) -> None:
    options = ("--drift", "depth,cache,cache-q8", "--depths", "0,64,32k", "--chunks", "4")  # intervals need places
    done = compare(tmp_path, *options)
    assert done.exit_code == 0, done.output
    assert "depths beyond 6,307 do not fit into the models' context: 32,768" in done.stderr
    base, four = read(tmp_path / "comparison.json").candidates
    caches = [("cache", "f32 cache", "bf16 cache"), ("cache-q8", "f32 cache", "q8 cache")]
    assert [(d.kind, d.reference, d.subject) for d in base.drift] == caches
    assert [(d.kind, d.reference, d.subject) for d in four.drift] == [
        ("depth", "bf16", "q4_0"),
        *caches,
    ]
    by_depth, by_cache, _ = four.drift
    assert [point.depth for point in by_depth.points] == [0, 64]
    for point, rounded in zip(by_depth.points, by_cache.points, strict=True):
        assert point.kld.value > 5 * rounded.kld.value > 0
    assert len(list((tmp_path / "parts").glob("drift-*.json"))) == 5
    again = compare(tmp_path, *options)
    assert "(1/1) drift" not in again.stderr, "finished parts are found again"
    assert read(tmp_path / "comparison.json").candidates[1].drift == four.drift

    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "comparison.json"), "--html", str(page)]).exit_code == 0
    assert "Divergence from the base by depth" in page.read_text()
    assert "A bfloat16 KV cache against a float32 one" in page.read_text()

    sheet = sheet_of(read(tmp_path / "comparison.json"))
    rules = [
        {"metric": "drift.depth", "max": 0.001},
        {"metric": "drift.cache", "max": 0.1},
        {"metric": "drift.depth@0", "max": 9},
    ]
    verdict = judge(parse_gate({"rules": rules}, "here", "g"), sheet)
    assert [outcome.metric for outcome in verdict.failed] == ["drift.depth"]
    assert "drift.depth@0" in [outcome.metric for outcome in verdict.outcomes]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--drift", "deep"), "'deep' is not one of depth, cache, cache-q8, backends"),
        (("--drift", "depth", "--depths", "x"), "'x': write numbers of tokens"),
        (("--drift", "depth", "--depths", ""), "write numbers of tokens, as in 0,1024,32k"),
    ],
)
def test_what_cannot_be_measured_is_refused_before(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = compare(tmp_path / "out", *options)
    assert done.exit_code == 2
    assert message in re.sub(r"[\s│]+", " ", done.output)
    assert not (tmp_path / "out" / "models").exists()


@pytest.mark.slow
def test_programs_agree(tmp_path: Path) -> None:
    """PyTorch in float32 and our kernels with float32 activations are one model; int8 activations are not."""
    pytest.importorskip("torch")
    done = compare(tmp_path, "--drift", "backends", "--depths", "0,500")
    assert done.exit_code == 0, done.output
    for candidate in read(tmp_path / "comparison.json").candidates:
        ours, theirs = candidate.drift[:2]
        assert (ours.subject, theirs.subject) == ("numba f32", "torch")
        for one, two in zip(ours.points, theirs.points, strict=True):
            assert one.kld.value == pytest.approx(two.kld.value, rel=0.05, abs=1e-6)


# ---- drawn ----------------------------------------------------------------------------------------------------------


def test_lines_have_a_place_for_every_value() -> None:
    y = Axis("nats", "{:.3g}".format, log=True)
    series = [
        Series("a", (Interval(0.1, 0.05, 0.2), Interval(0.2), None)),
        Series("b <", (Interval(0.0), Interval(0.01, 0.0, 0.02), Interval(0.02))),
    ]
    drawn = str(lines(["0", "1k", "2k"], series, "tokens", y, "title"))
    assert drawn.count("<circle") == 4, "0 has no place on a logarithmic axis"
    assert "b &lt;" in drawn
    assert "a 0: 0.1, 1k: 0.2; b &lt; 0: 0, 1k: 0.01, 2k: 0.02" in drawn
    numbers = [float(n) for n in re.findall(r'(?:cx|cy|x1|x2|y1|y2)="([-\d.]+)"', drawn)]
    assert min(numbers) >= 0
    assert max(numbers) <= 420
    assert not lines(["0"], [Series("a", (None,))], "x", y, "t")
    assert not lines(["0"], [Series("a", (Interval(0.0),))], "x", y, "t")


def test_depths_are_written_short() -> None:
    assert [written(depth) for depth in (0, 500, 1024, 1500, 32768)] == ["0", "500", "1k", "1500", "32k"]


def test_a_record_with_drift_is_read_as_it_was_written(tmp_path: Path) -> None:
    sample = Path(__file__).parents[1] / "report" / "sample-comparison.json"
    raw = json.loads(sample.read_text())
    point = {"depth": 0, "positions": 9, "windows": 3, "kld": {"value": 0.1}, "same_top": {"value": 0.9}}
    raw["candidates"][1]["drift"] = [{"kind": kind, "reference": "a", "subject": "b", "points": [point]} for kind in KINDS]
    (tmp_path / "r.json").write_text(json.dumps(raw))
    drift = read(tmp_path / "r.json").candidates[1].drift
    assert drift[0] == Drift("depth", "a", "b", [DriftPoint(0, 9, 3, drift[0].points[0].kld, drift[0].points[0].same_top)])
    del raw["candidates"][1]["drift"][0]["points"][0]["kld"]
    (tmp_path / "r.json").write_text(json.dumps(raw))
    with pytest.raises(BadRequest, match=r"candidates\[1\].drift\[0\].points\[0\]: the field 'kld' is missing"):
        read(tmp_path / "r.json")
