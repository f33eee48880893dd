"""The measurement of cold and warm starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from oss_tools.measure.start import first_token_seconds


@pytest.mark.slow
def test_a_cold_start_compiles_and_a_warm_one_does_not(tiny_llama: Path) -> None:
    command = [sys.executable, "-m", "oss_tools.measure.start", str(tiny_llama), "--threads", "1", "--warm", "2", "--json"]
    record = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (cold,), warm = record["seconds"]["cold"], record["seconds"]["warm"]
    assert len(warm) == 2
    assert cold > 2 * max(warm)
    assert record["threads"] == 1


def test_what_is_wrong_with_the_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        first_token_seconds(str(tmp_path / "nothing.gguf"), 1, tmp_path)
    assert b"nothing.gguf" in error.value.stderr
