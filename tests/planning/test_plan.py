"""plan: predictions hold on other text, the mixture beats single formats, recipes are followed, measurements are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.convert.recipe import load_recipe
from oss_tools.models import open_checkpoint
from oss_tools.planning.sensitivity import Sensitivities

SMALL = ["--tokens", "1024", "--sequence", "128", "--quiet", "--json"]
FORMATS = ["--formats", "mxfp4,q4_0,iq4_nl,q5_0,q8_0"]


def planned(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", "tiny", *arguments, *SMALL, *FORMATS])
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the embedded model."""
    file = tmp_path_factory.mktemp("plan") / "measured.json"
    planned("--bits", "6", "--measured", str(file))
    return file


@pytest.mark.parametrize("bits", [5.4, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (4.8, 6.5))])
def test_predicted_is_measured_and_better_than_any_format_alone(measured: Path, bits: float) -> None:
    record = planned("--bits", str(bits), "--measured", str(measured), "--check")
    check = record["check"]
    assert record["bits"] <= bits
    assert record["predicted_kld"] == pytest.approx(check["measured_kld"], rel=0.25)
    assert check["formats"]
    assert all(found["kld"] > check["measured_kld"] for found in check["formats"].values())


def test_a_recipe_is_written_and_followed(measured: Path, tmp_path: Path) -> None:
    recipe, made = tmp_path / "mixture.yaml", tmp_path / "made.gguf"
    record = planned("--size", "1.9MB", "--measured", str(measured), "-o", str(recipe))
    assert record["bytes"] <= 1_900_000
    assert "predicted divergence" in recipe.read_text()
    assert load_recipe(recipe).description
    result = CliRunner().invoke(app, ["requantize", "tiny", str(made), "--recipe", str(recipe), "--quiet"])
    assert result.exit_code == 0, result.output
    with open_checkpoint(made) as checkpoint:
        for tensor in record["tensors"]:
            for name in tensor["names"]:
                wanted = "bf16" if tensor["format"] == "keep" else tensor["format"]
                assert checkpoint.entries[name].format.name == wanted


@pytest.mark.slow
def test_a_larger_budget_never_loses_more_and_kld_is_one(measured: Path) -> None:
    records = [planned("--bits", str(bits), "--measured", str(measured)) for bits in (4.6, 5.0, 6.0, 8.0)]
    predicted = [record["predicted_kld"] for record in records]
    assert predicted == sorted(predicted, reverse=True)
    by_kld = planned("--kld", str(predicted[1]), "--measured", str(measured))
    assert by_kld["predicted_kld"] <= predicted[1]
    assert by_kld["bytes"] <= records[1]["bytes"] * 1.003


@pytest.mark.slow
def test_an_interrupted_run_goes_on(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real = tmp_path / "measured.json", Sensitivities.divergence
    calls: list[Any] = []

    def interrupted(self: Sensitivities, formats: Any) -> float:
        calls.append(formats)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(self, formats)

    monkeypatch.setattr(Sensitivities, "divergence", interrupted)
    result = CliRunner().invoke(app, ["plan", "tiny", "--bits", "6", "--measured", str(file), *SMALL, *FORMATS])
    assert result.exit_code != 0
    assert len(json.loads(file.read_text())["measured"]) == 6
    planned("--bits", "6", "--measured", str(file))
    whole, again = (json.loads(f.read_text()) for f in (measured, file))
    assert whole == again
    assert len(calls) == 7 + len(whole["measured"]) - 6 + len(whole["whole"])


@pytest.mark.slow
def test_every_other_layer_is_enough_to_begin_with(tmp_path: Path) -> None:
    """Of the embedded model's four layers all are first or last: none is left out; the option changes nothing."""
    file = tmp_path / "measured.json"
    record = planned("--bits", "6", "--every", "3", "--measured", str(file))
    assert len(json.loads(file.read_text())["measured"]) == len(record["tensors"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one limit"),
        (["--bits", "4", "--kld", "1"], "name one limit"),
        (["--bits", "nan"], "not a number above 0"),
        (["--bits", "5", "-o", "recipe.json"], "ends in .yaml"),
        (["--bits", "5", "--formats", "q9"], "no number format named"),
        (["--bits", "5", "--container", "tar"], "not one of hf, gguf"),
    ],
)
def test_what_cannot_be_planned(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["plan", "tiny", *arguments])
    assert result.exit_code != 0
    assert said in f"{result.output} {result.exception}"


def test_too_small_a_budget_says_the_smallest(measured: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "tiny", "--bits", "2", "--measured", str(measured), *SMALL, *FORMATS])
    assert "the smallest takes" in f"{result.output} {result.exception}"


def test_measurements_of_another_text_are_not_taken(measured: Path) -> None:
    arguments = [
        "plan",
        "tiny",
        "--bits",
        "6",
        "--measured",
        str(measured),
        "--tokens",
        "512",
        "--sequence",
        "128",
        *FORMATS,
    ]
    result = CliRunner().invoke(app, arguments)
    assert "another model, text or importance" in f"{result.output} {result.exception}"
