"""Every command of every guide, on small models: none goes stale."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from guide import GUIDES, parts, run_guide

from oss_tools.report.rules import load_gate

pytestmark = pytest.mark.slow
NAMES = sorted(file.stem for file in GUIDES.glob("*.md") if file.stem != "README")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "agents"])
def test_a_guide_s_commands_do_what_they_say(name: str, tmp_path: Path) -> None:
    if name in ("laptop", "fine-tune", "hospital"):
        pytest.importorskip("uvicorn")
    if name in ("fine-tune", "hospital", "ci"):
        pytest.importorskip("lm_eval")
    done = run_guide(name, tmp_path)
    assert done
    for one in done:  # a gate may fail on the embedded model: that is its answer
        assert one.status in ((0, 1) if "--gate" in one.command else (0,)), (one.command, one.said)
    for written in re.findall(r"--(?:html|junit|markdown|report) (\S+)", " ".join(one.command for one in done)):
        assert (tmp_path / written).stat().st_size
    for gate in tmp_path.glob("*gate.yaml"):
        assert load_gate(str(gate)).rules


def test_every_guide_has_commands_and_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w-]+)\.md\)", (GUIDES / "README.md").read_text()))
    for name in NAMES:
        assert [part for part in parts(name) if part["command"]]
        assert name in listed


@pytest.mark.peers
def test_agents_work_as_the_guide_configures_them(tmp_path: Path) -> None:
    pytest.importorskip("agents")
    done = run_guide("agents", tmp_path)
    assert [one.status for one in done] == [0] * len(done), done
    assert done[-1].said.strip().splitlines()[-1] == "43"
    model = json.loads(done[1].said)["data"][0]["id"]
    codex = tomllib.loads((tmp_path / "config.toml").read_text())
    provider = codex["model_providers"][codex["model_provider"]]
    claude = json.loads((tmp_path / "settings.json").read_text())["env"]
    assert codex["model"] == claude["ANTHROPIC_MODEL"] == claude["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == model
    assert provider["wire_api"] == "responses"
    assert provider["base_url"] == f"{claude['ANTHROPIC_BASE_URL']}/v1"
