"""Other people's checks of servers, run against ours: the Open Responses compliance suite and gpt-oss's compatibility test.

They are programs for Node, no part of this repository; docs/serve-protocols.md says how to fetch them. Each runs where the
variable that names its folder is set.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from replying import answered, called, replying_engine
from serving import running

SUITE, COMPATIBILITY = "OPEN_RESPONSES_FOLDER", "GPT_OSS_COMPATIBILITY_FOLDER"
TEXT_TESTS = ("basic-response", "streaming-response", "system-prompt", "tool-calling", "multi-turn", "assistant-phase")

pytestmark = [pytest.mark.peers, pytest.mark.slow]


def folder_of(variable: str) -> Path:
    if variable not in os.environ or shutil.which("npx") is None:
        pytest.skip(f"{variable} names no folder, or there is no npx")
    return Path(os.environ[variable])


def reply(prompt: str) -> str:
    if "get_weather" in prompt and "<|start|>functions." not in prompt:
        return called("get_weather", '{"location": "San Francisco, CA"}')
    return answered("Hello to you.")


def test_open_responses() -> None:
    folder = folder_of(SUITE)
    with running({"scripted": replying_engine(reply)}) as server:
        command = ["npx", "tsx", "bin/compliance-test.ts", "--json", "--api-key", "none", "--model", "scripted"]
        command += ["--base-url", f"{server.address}/openresponses/v1", "--filter", ",".join(TEXT_TESTS)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    results = {result["id"]: result for result in json.loads(done.stdout)["results"]}
    wrong = {name: found["errors"] for name, found in results.items() if found["status"] != "passed"}
    assert wrong == {}
    assert set(results) == set(TEXT_TESTS)


# With --streaming the program looks for Responses' output where its version of the Agents SDK never puts it
@pytest.mark.parametrize(("streaming", "apis"), [(False, ["responses", "chat"]), (True, ["chat"])])
def test_gpt_oss_compatibility(tmp_path: Path, streaming: bool, apis: list[str]) -> None:
    folder = folder_of(COMPATIBILITY)
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines() if line.strip()]
    of_input = {case["input"]: case for case in cases}

    def reply(prompt: str) -> str:
        case = max((case for text, case in of_input.items() if text in prompt), key=lambda case: len(case["input"]))
        if "<|start|>functions." in prompt:
            return answered("That is done.")
        return called(case["tool_name"], case["expected_arguments"])

    copy = tmp_path / "compatibility-test"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(folder / "node_modules")
    with running({"scripted": replying_engine(reply)}) as server:
        ours: dict[str, Any] = {"apiBaseUrl": f"{server.address}/v1", "apiKey": "none", "modelName": "scripted"}
        ours |= {"apiType": apis, "providerDetails": {}}
        (copy / "providers.ts").write_text(f"export const PROVIDERS = {json.dumps({'ours': ours})};\n")
        command = ["npx", "tsx", "index.ts", "--provider", "ours", *(["--streaming"] if streaming else [])]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (rollout,) = copy.glob("rollout_*.jsonl")
    records = [json.loads(line) for line in rollout.read_text().splitlines()]
    wrong = [
        (record["test_case"], record.get("error") or record["result"]) for record in records if not record.get("success")
    ]
    assert wrong == []
    assert len(records) == len(apis) * len(cases)
