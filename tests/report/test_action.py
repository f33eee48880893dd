"""action.yml, run as the steps that it lists: what GitHub would put into its place is put there, and bash runs it."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from oss_tools.report.comparison import read

ROOT = Path(__file__).parents[2]
FAST = '--suites "" --chunks 2 --repeat 0 -t 1'
EXPRESSION = re.compile(r"\$\{\{ *([\w.-]+) *\}\}")
CONDITION = re.compile(r"(?:always\(\) && )?inputs\.(\w+) != ''")


@dataclass
class Runner:
    """What GitHub's runner does of a composite action, as far as this one needs it."""

    folder: Path
    inputs: dict[str, str]
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    uploaded: list[Path] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    said: str = ""

    def run(self) -> bool:
        """Whether all steps succeeded."""
        action = yaml.safe_load((ROOT / "action.yml").read_text())
        assert action["runs"]["using"] == "composite"
        known = {name: str(entry["default"]) for name, entry in action["inputs"].items()}
        assert set(self.inputs) <= set(known)
        self.inputs = known | self.inputs
        failed = False
        for step in action["runs"]["steps"]:
            if self._wanted(step.get("if"), failed):
                self.done.append(step["name"])
                failed = not self._step(step) or failed
        for output in action["outputs"].values():
            self._filled(output["value"])
        return not failed

    def _wanted(self, condition: str | None, failed: bool) -> bool:
        if condition is None:
            return not failed
        found = CONDITION.fullmatch(condition)
        assert found, f"a condition that this runner does not know: {condition}"
        return bool(self.inputs[found[1]]) and (not failed or condition.startswith("always()"))

    def _step(self, step: dict[str, Any]) -> bool:
        if "uses" in step:
            assert step["uses"].startswith("actions/upload-artifact@")
            named = [self.folder / line for line in self._filled(step["with"]["path"]).split()]
            self.uploaded = [file for file in named if file.exists()]
            return True
        assert step["shell"] == "bash"
        script, output = self.folder / "step.sh", self.folder / "output.txt"
        script.write_text(self._filled(step["run"]))
        output.write_text("")
        places = {"GITHUB_OUTPUT": output, "GITHUB_STEP_SUMMARY": self.folder / "summary.md"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {name: self._filled(value) for name, value in step.get("env", {}).items()}
        environment = {**os.environ, "PATH": path, **{name: str(place) for name, place in places.items()}, **own}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)
        self.said += done.stdout + done.stderr
        if "id" in step:
            pairs = (line.split("=", 1) for line in output.read_text().splitlines())
            self.outputs[step["id"]] = dict(pairs)
        return done.returncode == 0

    def _filled(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            kind, *rest = match[1].split(".")
            if kind == "inputs":
                return self.inputs[rest[0]]
            assert kind == "steps", match[0]
            return self.outputs.get(rest[0], {}).get(rest[2], "")

        return EXPRESSION.sub(value, text)


def test_every_step_is_run_and_everything_is_kept(tmp_path: Path) -> None:
    runner = Runner(tmp_path, {"install": "", "formats": "bf16,q8_0", "options": FAST})
    assert runner.run(), runner.said
    assert runner.done == ["Compare", "Judge", "Keep the record and the reports"]
    assert runner.outputs == {"compare": {"record": "comparison/comparison.json"}, "judge": {"passed": "true"}}
    record = read(tmp_path / runner.outputs["compare"]["record"])
    assert [candidate.name for candidate in record.candidates] == ["bf16", "q8_0"]
    assert not record.reference.tasks
    names = {"comparison.json", "report.html", "report.md", "card.svg", "card.md", "gate.xml"}
    assert {file.name for file in runner.uploaded} == names
    summary = (tmp_path / "summary.md").read_text()
    assert "gate default: passed" in summary
    assert "| q8\\_0 |" in summary or "| q8_0 |" in summary


def test_a_gate_that_fails_ends_the_job_and_its_reports_are_kept(tmp_path: Path) -> None:
    (tmp_path / "strict gate.yaml").write_text(
        "rules: [{metric: same_top, min: 1.0, strict: true, name: nothing changes}]\n"
    )
    inputs = {"install": "", "formats": "bf16,q4_0", "options": FAST, "gate": "strict gate.yaml", "output": "some where"}
    runner = Runner(tmp_path, inputs)
    assert not runner.run()
    assert runner.outputs["judge"] == {"passed": "false"}
    assert "nothing changes" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "some where" / "gate.xml").exists()


def test_what_cannot_be_compared_ends_the_job_before_it_is_judged(tmp_path: Path) -> None:
    runner = Runner(tmp_path, {"install": "", "models": "'no such model.gguf' tiny", "options": FAST})
    assert not runner.run()
    assert runner.done == ["Compare", "Keep the record and the reports"]
    assert "no such model.gguf" in runner.said
    assert not runner.uploaded


def test_inputs_are_no_commands(tmp_path: Path) -> None:
    """What a pull request's title or a branch's name may bring into an input is data: it stands in no script."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert not [step for step in action["runs"]["steps"] if "${{" in step.get("run", "")]
    runner = Runner(tmp_path, {"install": "", "models": "$(touch hit) `touch hit` ;touch hit", "options": "$(touch hit)"})
    assert not runner.run()
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("name", ["quantization.yml"])
def test_the_workflow_and_the_action_use_the_same_versions(name: str) -> None:
    used = re.findall(r"uses: (actions/upload-artifact@\S+)", (ROOT / ".github" / "workflows" / name).read_text())
    assert used == re.findall(r"uses: (actions/upload-artifact@\S+)", (ROOT / "action.yml").read_text())
