"""The same suites by the engine directly and through `oss-tools serve`: the same answers, the same scores."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("starlette")

from oss_tools.endpoints.endpoint import parse_endpoint
from oss_tools.engine.engine import Engine
from oss_tools.harness.run import Settings, evaluate
from oss_tools.harness.subjects import EndpointSubject, EngineSubject
from oss_tools.resources import resource

TASKS = ["math_smoke", "health_smoke", "tool_use_smoke"]
SETTINGS = Settings(limit=12, max_tokens=320)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the embedded model in a process of its own, on a port that is free."""
    command = [sys.executable, "-m", "oss_tools", "serve", "tiny", "--port", "0", "-t", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
    ) as process:
        try:
            assert process.stdout
            said = ""
            for line in process.stdout:
                said += line
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield f"{found[0]}/v1#tiny"
                    break
            else:
                pytest.fail(said)
        finally:
            process.terminate()


@pytest.mark.slow
def test_a_suite_has_the_same_answers_and_scores_through_the_server(
    address: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    subject = EndpointSubject(parse_endpoint(address, concurrency=4))
    served = evaluate(subject, TASKS, SETTINGS, model=subject.described)
    subject.close()
    with Engine.load(resource("tiny/checkpoint"), threads=1) as engine:
        direct = evaluate(EngineSubject(engine), TASKS, SETTINGS, model={"name": "tiny"})
    for task in TASKS:
        ours, theirs = direct["tasks"][task], served["tasks"][task]
        assert ours["items"]["sha256"] == theirs["items"]["sha256"]
        malformed = theirs["usage"]["problems"].get("malformed", 0)  # which the server does not send on
        differing = sum(a != b for a, b in zip(ours["items"]["correct"], theirs["items"]["correct"], strict=True))
        assert differing <= malformed
        assert theirs["usage"]["answers"] == ours["usage"]["answers"] == 12
    assert served["model"]["wire"]["requests"] + sum(
        served["tasks"][task]["usage"]["problems"].get("malformed", 0) for task in TASKS
    ) == 12 * len(TASKS)
