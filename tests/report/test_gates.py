"""Gates: limits that hold, break, or break by no more than noise; what is missing; files that are wrong."""

import copy
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.errors import BadRecipe, BadRequest
from oss_tools.report.comparison import from_json
from oss_tools.report.gates import judge, judged, ratio, square_and_add
from oss_tools.report.metrics import Interval
from oss_tools.report.rules import Gate, Rule, gate_names, load_gate, parse_gate
from oss_tools.report.sheet import Sheet, sheet_of

SAMPLE = json.loads(Path(__file__).with_name("sample-comparison.json").read_text(encoding="utf-8"))
finite = st.floats(0.01, 100)


def sample(change=lambda record: None) -> Sheet:
    record = copy.deepcopy(SAMPLE)
    change(record)
    return sheet_of(from_json(record))


def only(rule: dict, candidate: str = "mxfp4", sheet: Sheet | None = None, baseline: Sheet | None = None):
    gate = parse_gate({"rules": [{"candidates": candidate, **rule}]}, "limits.yaml", "limits")
    outcomes = judge(gate, sheet or sample(), baseline).outcomes
    assert len(outcomes) == 1
    return outcomes[0]


@pytest.mark.parametrize(
    ("rule", "status", "said"),
    [
        # KLD of the sample's mxfp4: 0.0231, 0.0208 to 0.0254
        (
            {"metric": "kld.mean", "max": 0.03},
            "pass",
            "kld.mean is 0.0231 (95 %: 0.0208 to 0.0254); allowed is at most 0.03",
        ),
        ({"metric": "kld.mean", "max": 0.022}, "noise", "no more than noise"),
        ({"metric": "kld.mean", "max": 0.022, "strict": True}, "fail", "at most 0.022, strict"),
        ({"metric": "kld.mean", "max": 0.02}, "fail", "at most 0.02"),
        ({"metric": "same_top", "min": 0.95}, "fail", "at least 95 %"),
        # tool_use_smoke: -11.7 points, -20.3 to -3.0
        ({"metric": "task.tool_use_smoke", "difference": "base", "min": -0.02}, "fail", "at least −2 points"),
        ({"metric": "suite.tool_use", "difference": "base", "min": -0.05}, "noise", "no more than noise"),
        ({"metric": "task.health_smoke", "difference": "base", "min": -0.02}, "pass", "0 points"),
        ({"metric": "time_per_token", "ratio": "base", "max": 0.5}, "pass", "0.430 × (95 %: 0.417 to 0.443)"),
        ({"metric": "time_per_token", "ratio": "base", "max": 0.4}, "fail", "at most 0.4 ×"),
        ({"metric": "size", "ratio": "base", "max": 0.25}, "fail", "0.295 ×"),
        ({"metric": "size", "max": 6_000_000}, "pass", "at most 6 MB"),
    ],
)
def test_a_rule_holds_fails_or_is_within_noise(rule: dict, status: str, said: str) -> None:
    outcome = only(rule)
    assert outcome.status == status, outcome.message
    assert said in outcome.message


def test_findings_fail_the_default_gate_and_name_tensor_and_task() -> None:
    verdict = judge(load_gate("default"), sample())
    wrong = {(o.candidate, o.metric): o for o in verdict.failed}
    assert not verdict.passed
    assert "model.layers.3.mlp.experts.down_proj[2]" in wrong["q4_0", "findings.weights"].details[0]
    assert "math_smoke" in wrong["q4_0", "findings.task"].details[0]
    assert not any(candidate in ("int8", "q8_0", "bf16") for candidate, _ in wrong)


def honest(change=lambda candidate: None) -> Sheet:
    """The sample without what is wrong in it, and with a change of its int8."""

    def only_honest(record) -> None:
        record["candidates"] = record["candidates"][:3]
        change(record["candidates"][1])

    return sample(only_honest)


def found(kind: str):
    finding = {"kind": kind, "subject": "the_culprit", "message": "the_culprit is wrong", "layer": None, "role": ""}
    return lambda candidate: candidate["findings"].append(finding)


def scored(value: float, low: float, high: float):
    return lambda candidate: candidate["tasks"][0]["difference"].update(value=value, low=low, high=high)


def predicted(field: str, name: str = "int8", **figures: float):
    def change(candidate) -> None:
        candidate.update(name=name, recipe=name)
        candidate["fidelity"][0][field].update(figures)

    return change


def scaled(field: str, factor: float):
    """A candidate's figure, and the interval that it may have, times a factor."""

    def change(candidate) -> None:
        *above, last = field.split(".")
        for name in above:
            candidate = candidate[int(name) if name.isdigit() else name]
        value = candidate[last]
        if isinstance(value, dict):
            value.update({name: factor * value[name] for name in ("median", "low", "high")})
        else:
            candidate[last] = type(value)(factor * value)

    return change


def two_more_wrong(candidate) -> None:
    task = candidate["tasks"][0]
    for _ in range(2):
        task["items"][task["items"].index(1.0)] = 0.0
    task["score"]["value"] -= 2 / 60


def test_honest_quantizations_pass_the_gates() -> None:
    assert judge(load_gate("default"), honest()).passed
    assert judge(load_gate("tiny"), honest(), honest()).passed


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("nothing is wrong with the weights", found("weights")),
        ("no task fell", found("task")),
        ("scores stay within 2 points", scored(-0.1, -0.15, -0.03)),
        ("8 bits predict what the base predicts", predicted("kld", mean=0.06, low=0.05, high=0.07)),
        ("predictions stay near the base's", predicted("kld", "mine", mean=0.9, low=0.8, high=1.0)),
        ("the likeliest token stays the base's", predicted("same_top", "mine", value=0.4, low=0.35, high=0.45)),
    ],
)
def test_every_rule_of_the_default_gate_refuses(rule: str, change) -> None:
    verdict = judge(load_gate("default"), honest(change))
    assert {outcome.rule.name for outcome in verdict.failed} == {rule}
    assert {outcome.candidate for outcome in verdict.failed} <= {"int8", "mine"}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("scores stay within 2 points", scored(-0.1, -0.25, 0.05)),
        ("8 bits predict what the base predicts", predicted("kld", mean=0.06, low=0.001, high=0.2)),
        ("predictions stay near the base's", predicted("kld", "mine", mean=0.9, low=0.01, high=1.8)),
        ("the likeliest token stays the base's", predicted("same_top", "mine", value=0.4, low=0.1, high=0.95)),
    ],
)
def test_what_may_be_noise_passes_the_default_gate(rule: str, change) -> None:
    verdict = judge(load_gate("default"), honest(change))
    assert verdict.passed
    assert rule in {outcome.rule.name for outcome in verdict.outcomes if outcome.status == "noise"}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("nothing is wrong with the weights", found("weights")),
        ("files do not grow", scaled("size", 1.01)),
        ("memory does not grow", scaled("peak_bytes", 1.2)),
        ("weights are as near as they were", scaled("weight_error.relative_error", 1.01)),
        ("predictions are as near as they were", scaled("fidelity.0.kld.mean", 1.2)),
        ("the likeliest token stays as often", scaled("fidelity.0.same_top.value", 0.98)),
        ("scores stay", two_more_wrong),
        ("a format of fewer bits is faster", scaled("latency.ratio_time_per_token", 1.8)),
        ("a token takes no longer", scaled("latency.per_reference", 4)),
    ],
)
def test_every_rule_of_the_embedded_models_gate_refuses(rule: str, change) -> None:
    verdict = judge(load_gate("tiny"), honest(change), honest())
    assert {(outcome.rule.name, outcome.candidate) for outcome in verdict.failed} == {(rule, "int8")}


def test_a_pattern_is_a_rule_for_every_metric_it_means_and_for_every_candidate() -> None:
    gate = Gate("g", (Rule("task.*", min=0.0),))
    pairs = {(o.candidate, o.metric) for o in judge(gate, sample()).outcomes}
    assert len(pairs) == 4 * 3
    assert not any(candidate == "bf16" for candidate, _ in pairs)


def test_what_is_missing_fails_unless_it_may_be_skipped() -> None:
    assert only({"metric": "perplexity.other", "max": 1}).status == "fail"
    assert only({"metric": "perplexity.other", "max": 1, "missing": "skip"}).status == "skip"
    assert only({"metric": "kld.mean", "max": 1}, candidate="nowhere*").status == "fail"
    assert "no candidate is nowhere*" in only({"metric": "kld.mean", "max": 1}, candidate="nowhere*").message


def test_a_baseline_that_is_wanted_and_not_given_is_an_error() -> None:
    with pytest.raises(BadRequest, match=r"gate limits: the rule .* compares with a baseline; give --baseline FILE"):
        only({"metric": "size", "ratio": "baseline", "max": 1})


def test_against_an_equal_baseline_nothing_changed() -> None:
    verdict = judge(load_gate("tiny"), sample(), sample())
    assert {o.metric for o in verdict.failed} == {"findings.weights"}


def _one_more_wrong(record) -> None:
    task = record["candidates"][3]["tasks"][0]
    task["items"][task["items"].index(1.0)] = 0.0
    task["score"]["value"] -= 1 / 60


def _many_wrong(record) -> None:
    task = record["candidates"][3]["tasks"][0]
    task["items"] = [0.0] * 60
    task["score"] = {"value": 0.0, "stderr": 0.0, "low": 0.0, "high": 0.0}


def test_scores_are_compared_with_the_baseline_item_by_item() -> None:
    rule = {"metric": "task.math_smoke", "difference": "baseline", "min": -0.01}
    assert sample().models[-1].name == SAMPLE["candidates"][3]["name"] == "mxfp4"
    slightly = only(rule, sheet=sample(_one_more_wrong), baseline=sample())
    assert slightly.status == "noise"
    assert "−1.67 points" in slightly.message
    assert only(rule | {"strict": True}, sheet=sample(_one_more_wrong), baseline=sample()).status == "fail"
    assert only(rule, sheet=sample(_many_wrong), baseline=sample()).status == "fail"


def test_a_baseline_of_other_data_is_not_compared_with() -> None:
    def other_data(record) -> None:
        record["candidates"][3]["tasks"][0]["data_sha256"] = "0" * 64

    rule = {"metric": "task.math_smoke", "difference": "baseline", "min": -0.01}
    outcome = only(rule, baseline=sample(other_data))
    assert outcome.status == "fail"
    assert "measured on something else" in outcome.message


def test_times_of_another_machine_are_not_compared_but_those_over_a_reference_are() -> None:
    def elsewhere(record) -> None:
        record["environment"]["machine"]["cpu"] = "another"

    rule = {"ratio": "baseline", "max": 1.1}
    assert only({"metric": "time_per_token", **rule}, baseline=sample(elsewhere)).status == "fail"
    assert only({"metric": "time_per_token_per_reference", **rule}, baseline=sample(elsewhere)).status == "pass"


def test_a_rule_for_one_processor_is_skipped_on_another() -> None:
    def elsewhere(record) -> None:
        record["environment"]["machine"]["cpu"] = "another"

    rule = {"metric": "time_per_token_per_reference", "ratio": "baseline", "max": 0.5, "same_processor": True}
    assert only(rule, baseline=sample()).status == "fail"
    outcome = only(rule, baseline=sample(elsewhere))
    assert outcome.status == "skip"
    assert "the baseline is of another, this of AMD EPYC" in outcome.message


def test_a_ratio_over_nothing_is_missing() -> None:
    def free(record) -> None:
        record["candidates"][3]["weight_error"]["relative_error"] = 0.0

    outcome = only({"metric": "weight_error", "ratio": "baseline", "max": 2}, baseline=sample(free))
    assert (outcome.status, "is 0, over which there is no ratio" in outcome.message) == ("fail", True)


def test_a_candidate_that_the_baseline_lacks_fails() -> None:
    def without(record) -> None:
        del record["candidates"][3]

    outcome = only({"metric": "size", "ratio": "baseline", "max": 1}, baseline=sample(without))
    assert outcome.status == "fail"
    assert "the baseline has no candidate of this name" in outcome.message


def test_a_figure_that_is_no_longer_measured_fails() -> None:
    def without(record) -> None:
        record["candidates"][3]["fidelity"] = []

    outcome = only({"metric": "kld.mean", "ratio": "baseline", "max": 1}, sheet=sample(without), baseline=sample())
    assert outcome.status == "fail"
    assert "not measured now" in outcome.message


@given(finite, finite, finite, finite, finite, finite)
@settings(deadline=None)
def test_intervals_of_changes_hold_the_change(a: float, b: float, da: float, db: float, ua: float, ub: float) -> None:
    new, old = Interval(a, a - da, a + ua), Interval(b, b - db, b + ub)
    for change in (square_and_add(new, old), ratio(new, old)):
        assert change.bounds[0] <= change.value <= change.bounds[1]


def test_square_and_add_is_the_normal_interval_for_symmetric_terms() -> None:
    change = square_and_add(Interval(5, 2, 8), Interval(1, -3, 5))
    assert change == Interval(4, 4 - math.hypot(3, 4), 4 + math.hypot(3, 4))


@given(st.floats(-1e3, 1e3), st.floats(0, 10), st.floats(0, 10), st.floats(-1e3, 1e3))
@settings(deadline=None)
def test_noise_never_fails_and_strict_has_no_noise(value: float, below: float, above: float, limit: float) -> None:
    found = Interval(value, value - below, value + above)
    relaxed, strict = judged(Rule("size", max=limit), found), judged(Rule("size", max=limit, strict=True), found)
    assert (relaxed == "fail") == (value - below > limit)
    assert (strict == "fail") == (value > limit)
    assert strict != "noise"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "a gate is a mapping with a list `rules`"),
        ({"rules": []}, "at least one"),
        ({"rules": [{"metric": "size", "max": 1}], "rule": 1}, "g.yaml: unknown field 'rule'"),
        ({"rules": ["size"]}, "rule 1: a rule is a mapping"),
        ({"rules": [{"metric": "size", "max": 1}, {"metric": "size", "maximum": 1}]}, "rule 2: unknown field 'maximum'"),
        ({"rules": [{"max": 1}]}, "rule 1: the field 'metric' is missing"),
        ({"rules": [{"metric": "size"}]}, "rule 1: min, max or both are wanted"),
        ({"rules": [{"metric": "sise", "max": 1}]}, "rule 1: metric: no metric named 'sise'"),
        ({"rules": [{"metric": "size", "max": math.nan}]}, "rule 1: max: a finite number is wanted, not 'nan'"),
        ({"rules": [{"metric": "size", "max": "2 MB"}]}, "rule 1: max: a finite number is wanted"),
        ({"rules": [{"metric": "size", "max": True}]}, "rule 1: max: a finite number is wanted"),
        ({"rules": [{"metric": "size", "min": 2, "max": 1}]}, "rule 1: min 2 is more than max 1"),
        ({"rules": [{"metric": "size", "max": 1, "ratio": "bf16"}]}, "rule 1: ratio: base or baseline is wanted"),
        ({"rules": [{"metric": "size", "max": 1, "ratio": "base", "difference": "base"}]}, "rule 1: either difference or"),
        ({"rules": [{"metric": "size", "max": 1, "strict": "yes"}]}, "rule 1: strict: true or false is wanted"),
        ({"rules": [{"metric": "size", "max": 1, "same_processor": 1}]}, "rule 1: same_processor: true or false is wanted"),
        ({"rules": [{"metric": "size", "max": 1, "missing": "ok"}]}, "rule 1: missing: fail or skip is wanted"),
        ({"rules": [{"metric": "size", "max": 1, "candidates": [1]}]}, "rule 1: candidates: a name, or a list"),
        ({"rules": [{"name": "files", "metric": "size", "max": []}]}, r"rule 1 \(files\): max: a finite number"),
    ],
)
def test_a_wrong_gate_is_refused_by_file_rule_and_field(content: object, said: str) -> None:
    with pytest.raises(BadRecipe, match=said) as refused:
        parse_gate(content, "g.yaml", "g")
    assert str(refused.value).startswith("g.yaml: ")
    assert "\n" not in str(refused.value)


def test_gates_that_are_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="no gate named 'strickt'; there are default, tiny"):
        load_gate("strickt")
    (tmp_path / "g.yaml").write_text("rules: [", encoding="utf-8")
    with pytest.raises(BadRecipe, match="cannot be read"):
        load_gate(tmp_path / "g.yaml")
    with pytest.raises(BadRecipe, match="cannot be read"):
        load_gate(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", gate_names())
def test_the_gates_that_travel_along_are_read(name: str) -> None:
    gate = load_gate(name)
    assert gate.about
    assert all(rule.limits in rule.title or rule.name for rule in gate.rules)
