"""The embedded model on its smoke tests: offline, with the skills it was trained for, the same each time."""

import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from oss_tools.engine.engine import Engine
from oss_tools.harness.run import Settings, evaluate
from oss_tools.harness.subjects import EngineSubject
from oss_tools.resources import resource

TASKS = ("math_smoke", "health_smoke", "tool_use_smoke", "text_smoke")


def refused(*_: Any) -> None:
    raise AssertionError("an offline evaluation looks for the network")


def run(checkpoint: Path, settings: Settings) -> dict[str, Any]:
    with Engine.load(checkpoint) as engine:
        return evaluate(EngineSubject(engine), TASKS, settings, model={"name": "tiny"})["tasks"]


def test_the_embedded_model_scores_offline_and_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", refused)
    checkpoint = resource("tiny/checkpoint")
    one, two = (run(checkpoint, Settings(limit=24)) for _ in range(2))
    for name in TASKS:
        assert one[name]["items"] == two[name]["items"]
        assert one[name]["scores"] == two[name]["scores"]
    # chance is far below: of these answers hardly one can be guessed
    assert all(one[name]["scores"]["correct"]["score"] > 0.4 for name in TASKS[:3])
    assert one["tool_use_smoke"]["scores"]["well_formed"]["score"] > 0.6
    unfinished = sum(one[name]["usage"]["no_final"] for name in TASKS[:3])
    assert unfinished <= 0.05 * 72


@pytest.mark.slow
def test_batches_do_not_change_answers() -> None:
    """What an answer is does not depend on what is decoded beside it."""
    checkpoint = resource("tiny/checkpoint")
    alone, together = (run(checkpoint, Settings(limit=60, batch=batch)) for batch in (1, 32))
    for name in TASKS:
        assert alone[name]["items"] == together[name]["items"]
