"""tau2's own package, where there is one: its reference calls earn the reward, others do not.

OSS_TOOLS_TAU2 names a checkout of https://github.com/sierra-research/tau2-bench, OSS_TOOLS_TAU2_PYTHON a Python that has it.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.harness.run import Settings, evaluate
from oss_tools.harness.subjects import EndpointSubject
from oss_tools.harness.tau2.simulation import Simulation, simulating_with
from tests.endpoints.chat_server import serving
from tests.harness.tau2_players import MODEL, USER, players, reference

CHECKOUT, PYTHON = os.environ.get("OSS_TOOLS_TAU2", ""), os.environ.get("OSS_TOOLS_TAU2_PYTHON", "")
pytestmark = [pytest.mark.peers, pytest.mark.skipif(not (CHECKOUT and PYTHON), reason="needs OSS_TOOLS_TAU2 and its Python")]
FEW = 12


def silent(task, mine):
    return "I cannot help you."


@pytest.mark.parametrize("domain", ["retail", "airline", "telecom"])
@pytest.mark.parametrize(("agent", "earned"), [(reference, True), (silent, False)])
def test_the_reference_earns_the_reward(tmp_path, domain, agent, earned):
    folder = Path(CHECKOUT) / "data" / "tau2" / "domains" / domain
    if not (folder / "tasks.json").exists() or not list(folder.glob("db.*")):
        pytest.skip(f"the checkout has no tasks of {domain}")
    tasks = list({str(told(task)): task for task in json.loads((folder / "tasks.json").read_text())}.values())[:FEW]
    copy = tmp_path / "checkout" / "data" / "tau2"
    (copy / "domains").mkdir(parents=True)
    (copy / "user_simulator").symlink_to(folder.parents[1] / "user_simulator")
    shutil.copytree(folder, copy / "domains" / domain, ignore=lambda *_: ["tasks.json", "split_tasks.json"])
    (copy / "domains" / domain / "tasks.json").write_text(json.dumps(tasks))
    with serving(players(tasks, agent)) as server:
        subject = EndpointSubject(Endpoint(server.url, MODEL))
        with Simulation(Endpoint(server.url, USER), PYTHON, copy.parents[1]) as user, simulating_with(user):
            name = f"tau2_{domain}"
            record = evaluate(subject, [name], Settings(), model={}, data=copy.parents[1], output=tmp_path / "run")
        subject.close()
    items = record["tasks"][name]["items"]
    assert items["ended"] == [1] * len(tasks)
    if earned:
        assert items["correct"] == [1] * len(tasks)
    else:
        assert sum(items["correct"]) < len(tasks)
    assert user.tally.requests >= 2 * len(tasks)


def told(task):
    """What a task's user is told, by which the players here tell tasks apart."""
    return task["user_scenario"]["instructions"]
