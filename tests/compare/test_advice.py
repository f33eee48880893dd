"""What to take with so much memory: the nearest that fits, the smaller of equals, and what speaks against it."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.compare.advice import advise
from oss_tools.report.comparison import Candidate, Comparison, Environment, Finding
from oss_tools.report.fidelity import Divergence, Fidelity
from oss_tools.report.scores import Margins
from oss_tools.statistics.figures import Estimate

ENVIRONMENT = Environment({"cpu": "x", "cores": 1}, {}, {}, "2026-01-01T00:00:00+00:00", 1.0)
GB = 10**9


def candidate(name: str, kld: float | None, spread: float = 0.001, same_top: float = 0.97) -> Candidate:
    divergence = None if kld is None else Divergence(kld, spread, kld - spread, kld + spread, kld, kld, kld, kld, kld, kld)
    fidelity = Fidelity("text", "0", 10, 5, 2, Estimate(10.0), kld=divergence, same_top=Estimate(same_top))
    return Candidate(name, name, {}, "hf", name, "0", 1, 1, 8.0, fidelity=[fidelity])


def record(*candidates: Candidate) -> Comparison:
    return Comparison("m", "base", ENVIRONMENT, [candidate("base", None), *candidates])


NEEDED = {"base": 40 * GB, "eight": 20 * GB, "five": 14 * GB, "four": 12 * GB}
ALL = record(candidate("eight", 0.004), candidate("five", 0.03), candidate("four", 0.2))


@pytest.mark.parametrize(("budget", "chosen"), [(64, "base"), (24, "eight"), (16, "five"), (13, "four"), (8, None)])
def test_the_nearest_that_fits_is_taken(budget: int, chosen: str | None) -> None:
    advice = advise(ALL, NEEDED, budget * GB, 4096)
    assert advice.chosen == chosen
    assert {name for name, _ in advice.passed_over} == set(NEEDED) - {chosen}


def test_of_equals_the_smaller_one_is_taken() -> None:
    equals = record(candidate("eight", 0.030, 0.004), candidate("five", 0.032, 0.004), candidate("four", 0.2))
    advice = advise(equals, NEEDED, 30 * GB, 4096)
    assert advice.chosen == "five"
    assert ("eight", "is no nearer to the base by evidence, and needs 20 GB") in advice.passed_over


def test_what_speaks_against_it_is_said() -> None:
    margins = Margins("all", 50, 9.0, 8.0, Estimate(0.9), Estimate(0.04), 0, 3, Estimate(-1.0), 0.001, 0.003)
    harmed = replace(candidate("four", 0.2), margins=[margins], findings=[Finding("task", "t", "t fell by 3 points")])
    advice = advise(record(harmed), NEEDED, 13 * GB, 4096)
    assert advice.chosen == "four"
    said = "; ".join(advice.against)
    for part in ("t fell by 3 points", "1.00 nats smaller", "4.0 % of 50 decisions", "3.0 % of positions"):
        assert part in said


def test_models_behind_addresses_are_passed_over() -> None:
    away = replace(candidate("hosted", None), container="endpoint", fidelity=[])
    assert advise(record(away), {"base": 40 * GB}, 64 * GB, 4096).chosen == "base"


def test_the_verb_ends_with_it(tmp_path) -> None:
    few = ("--formats", "bf16,q4_0", "--suites", "", "--chunks", "2", "--repeat", "0", "-t", "1", "-q", "-o", str(tmp_path))
    done = CliRunner().invoke(app, ["compare", "tiny", *few, "--budget", "4GiB", "--context", "2048"])
    assert done.exit_code == 0, done.output
    assert "take bf16:" in done.output
    assert "with 2,048 positions" in done.output
    assert "q4_0 is further from the base" in done.output
    done = CliRunner().invoke(app, ["compare", "tiny", *few, "--budget", "1MB", "--json"])
    assert '"chosen": null' in done.output
