"""Finished parts, the schedule, and the turns of timing: what is kept, what is made again, how long the rest takes."""

import pytest

from oss_tools.compare.answers import changes, differences, task_findings, task_score
from oss_tools.compare.latency import Settings as Timing
from oss_tools.compare.latency import latency
from oss_tools.compare.parts import Parts, program
from oss_tools.compare.schedule import Schedule
from oss_tools.errors import BadRequest
from oss_tools.harness.suites import SuiteTask


def test_a_part_is_made_once_for_what_it_depends_on(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"value": len(made)}

    parts = Parts(tmp_path)
    about = {"model": "a", "limit": 3}
    assert not parts.has("answer", about)
    assert parts.get("answer", about, make) == {"value": 1}
    assert Parts(tmp_path).get("answer", {"limit": 3, "model": "a"}, make) == {"value": 1}
    assert parts.get("answer", {"model": "b", "limit": 3}, make) == {"value": 2}
    assert parts.get("weights", about, make) == {"value": 3}
    parts.drop("answer", about)
    assert parts.get("answer", about, make) == {"value": 4}


def test_a_part_of_another_state_of_the_program_is_made_again(tmp_path, monkeypatch):
    assert Parts(tmp_path).get("answer", {}, lambda: 1) == 1
    monkeypatch.setattr("oss_tools.compare.parts.program", lambda: "another kernel")
    assert Parts(tmp_path).get("answer", {}, lambda: 2) == 2


@pytest.mark.parametrize("part", ["oss_tools", "numba_kernels", "evals"])
def test_the_state_of_the_program_is_that_of_its_files(tmp_path, monkeypatch, part):
    if part == "evals":
        monkeypatch.setattr("oss_tools.machine.program.resource", lambda relative: tmp_path)
    else:
        monkeypatch.setattr(f"{part}.__file__", str(tmp_path / "__init__.py"))
    seen = []
    for content in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "cpu").mkdir(exist_ok=True)
        (tmp_path / "cpu" / "utils.py").write_text(content)
        program.cache_clear()
        seen.append(program())
    program.cache_clear()
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"seconds": 1}'])
def test_a_damaged_part_is_made_again(tmp_path, damage):
    parts = Parts(tmp_path)
    parts.get("answer", {}, lambda: 1)
    next(tmp_path.iterdir()).write_text(damage)
    assert parts.get("answer", {}, lambda: 2) == 2


def test_a_part_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Parts(tmp_path).get("answer", {}, lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_the_schedule_counts_and_estimates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("oss_tools.compare.schedule.time.perf_counter", lambda: now[0])
    seen = []
    schedule = Schedule(seen.append)
    schedule.expect("answer", 3)
    with schedule.step("answer", "first") as advance:
        now[0] = 5.0
        advance(1, 2)
    now[0] = 10.0
    with schedule.step("answer", "second") as advance:
        now[0] = 11.0
        advance(1, 100)
        now[0] = 12.0
        advance(1, 4)
    assert [(n.number, n.total, n.what) for n in seen] == [
        (1, 3, "first"),
        (1, 3, "first"),
        (2, 3, "second"),
        (2, 3, "second"),
        (2, 3, "second"),
    ]
    assert seen[0].left is None
    assert seen[2].left == pytest.approx(10.0)  # this one and the next, 5 s each
    assert seen[3].left == pytest.approx(4.0 + 5.0)  # a hundredth says nothing; as long as the first
    assert seen[4].left == pytest.approx(6.0 + 5.0)


def result(outcomes, said="x"):
    return {
        "metric": "correct",
        "higher_is_better": True,
        "estimate": [sum(outcomes) / len(outcomes), None, None, None],
        "items": outcomes,
        "item_ids": [str(i) for i in range(len(outcomes))],
        "data_sha256": "d",
        "said": [{"prompt": f"q{i}", "answer": f"{said if o else 'no'}"} for i, o in enumerate(outcomes)],
    }


TASK = SuiteTask("math_smoke", "correct", 40, "Apache-2.0", "here", "sums")


def test_a_fall_is_a_finding_and_noise_is_none():
    base = {"math_smoke": result([1.0] * 36 + [0.0] * 4)}
    fell = {"math_smoke": result([0.0] * 16 + [1.0] * 20 + [0.0] * 4)}
    noise = {"math_smoke": result([0.0] + [1.0] * 35 + [1.0] + [0.0] * 3)}
    found = differences(base, {"fell": fell, "noise": noise, "copy": base})
    assert found["copy"]["math_smoke"].p_corrected == 1.0
    findings = {
        name: task_findings([task_score(TASK, "math", said["math_smoke"], found[name]["math_smoke"])], "bf16")
        for name, said in (("fell", fell), ("noise", noise), ("copy", base))
    }
    assert [f.subject for f in findings["fell"]] == ["math_smoke"]
    assert "0.400 worse than bf16" in findings["fell"][0].message
    assert findings["noise"] == findings["copy"] == []
    assert [(c.item_id, c.base_answer, c.answer) for c in changes(base, noise)] == [("0", "x", "no"), ("36", "no", "x")]
    assert changes(base, base) == []


def test_other_questions_cannot_be_paired():
    other = result([1.0, 0.0]) | {"item_ids": ["8", "9"]}
    with pytest.raises(BadRequest, match="different questions"):
        differences({"t": result([1.0, 0.0])}, {"c": {"t": other}})


def test_ratios_are_of_the_same_rounds():
    reference = {"reference": [1.0, 2.0] * 4}
    base = {"first": [1.0, 2.0] * 4, "step": [0.1, 0.2] * 4, "fast_step": [0.08, 0.16] * 4, **reference}
    other = {"first": [2.0, 4.0] * 4, "step": [0.05, 0.1] * 4, "fast_step": [0.04, 0.08] * 4, **reference}
    found = latency(other, base, Timing(prompt=10, generate=4, repeat=8))
    assert found.ratio_time_to_first_token is not None
    assert found.ratio_time_to_first_token.median == pytest.approx(2.0)
    assert found.ratio_time_per_token is not None
    assert found.ratio_time_per_token.high == pytest.approx(0.5)
    assert found.per_reference is not None
    assert found.per_reference.median == pytest.approx(0.04)
    assert latency(base, None, Timing()).ratio_time_per_token is None
