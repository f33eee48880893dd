"""What a user may have meant."""

from __future__ import annotations

import pytest

from oss_tools.guesses import near_names, none_named
from tests.commands import oss_tools


def test_near_names_are_the_likeliest_first_whatever_their_case() -> None:
    assert near_names("Q4_k_m", ["Q4_K_S", "Q4_K_M", "bf16"]) == ["Q4_K_M", "Q4_K_S"]
    assert near_names("anything", []) == []


def test_a_message_names_what_there_is_and_what_may_be_meant() -> None:
    assert (
        none_named("suite", "maths", ["health", "math"])
        == "no suite named 'maths'; did you mean math? There are health, math"
    )
    assert none_named("suite", "zzz", ["health", "math"]) == "no suite named 'zzz'; there are health, math"


def test_a_name_of_any_length_stays_short() -> None:
    assert len(none_named("suite", "x" * 10_000, ["math"])) < 200


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("genrate tiny x", "generate"),
        ("generate tyni x", "tiny"),
        ("requantize tiny out --recipe mxpf4", "mxfp4"),
        ("requantize tiny out --format q8-0", "q8_0"),
        ("generate tiny x --device cida", "cuda"),
        ("generate tiny x --backend numpa", "numba"),
        ("eval tiny --suite maths", "math"),
        ("synth gpt-oss-tny out", "gpt-oss-tiny"),
        ("fit gpt-os-20b", "gpt-oss-20b"),
    ],
)
def test_every_kind_of_name_is_guessed(line: str, meant: str, tmp_path) -> None:
    done = oss_tools(*line.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean" in done.stderr.lower()
    assert meant in done.stderr.lower().split("did you mean")[1].split("?")[0]
