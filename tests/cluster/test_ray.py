"""Ray nodes on this machine do a comparison: its record is that of a run without them, also when a node is killed."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")
from oss_tools.cluster.nodes import Cluster, Need, Part
from oss_tools.errors import BadSource, NoRoom, OssToolsError, Unreachable
from oss_tools.report.comparison import read

pytestmark = pytest.mark.slow
STORE = 80 << 20
FEW = ["--suites", "tool_use", "--limit", "60", "--chunks", "2", "--repeat", "0", "--threads", "1"]


@pytest.fixture
def raylets(monkeypatch):
    """Starts nodes on this machine; all end with the test."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster as Raylets

    head = {"num_cpus": 1, "memory": 2 << 30, "object_store_memory": STORE, "include_dashboard": False}
    found = Raylets(initialize_head=True, head_node_args=head)
    yield found
    found.shutdown()


def one_more(raylets):
    return raylets.add_node(num_cpus=1, memory=2 << 30, object_store_memory=STORE)


def compare(output: Path, *more: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "oss_tools",
        "compare",
        "tiny",
        "--formats",
        "bf16,q4_0",
        *FEW,
        *more,
        "-o",
        str(output),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, said = process.communicate()
    assert process.returncode == 0, said
    return said


def candidates(output: Path):
    return [replace(candidate, path="") for candidate in read(output / "comparison.json").candidates]


def parts(output: Path):
    return {file.name: file.stat().st_mtime_ns for file in (output / "parts").glob("*.json")}


def once(reached, process):
    while not reached():
        assert process.poll() is None, "it was through too soon"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The record of a run without Ray."""
    output = tmp_path_factory.mktemp("local") / "run"
    finish(compare(output))
    return candidates(output)


def test_two_nodes_make_the_record_of_none(tmp_path, raylets, local):
    one_more(raylets)
    said = finish(compare(tmp_path / "run", "--ray", raylets.address))
    assert candidates(tmp_path / "run") == local
    who = {line.rpartition("on ")[2].partition(";")[0] for line in said.splitlines() if "; 2 nodes" in line}
    assert len(who) == 2, said


def test_a_node_that_is_killed_costs_its_parts_only(tmp_path, raylets, local):
    lost, output = one_more(raylets), tmp_path / "run"
    process = compare(output, "--ray", raylets.address)
    once(lambda: any((output / "parts").glob("share-*.json")), process)
    before = parts(output)
    raylets.remove_node(lost, allow_graceful=False)
    finish(process)
    assert candidates(output) == local
    after = parts(output)
    assert {name: after[name] for name in before} == before


def test_a_run_that_is_killed_goes_on_on_one_node_and_without_any(tmp_path, raylets, local):
    second, output = one_more(raylets), tmp_path / "run"
    process = compare(output, "--ray", raylets.address)
    once(lambda: len(list((output / "parts").glob("share-*.json"))) >= 1, process)
    process.kill()
    process.communicate()
    before = parts(output)
    raylets.remove_node(second)
    finish(compare(output, "--ray", raylets.address))
    after = parts(output)
    assert {name: after[name] for name in before} == before
    assert candidates(output) == local
    finish(compare(output))
    assert parts(output) == after
    assert candidates(output) == local


# ---- parts that go wrong --------------------------------------------------------------------------------------------


def part(name: str, memory: int = 1 << 20, **order) -> Part:
    return Part(f"part {name}", f"tests.cluster.work:{name}", order, Need(1, memory))


def test_what_goes_wrong_on_a_node_is_one_line(raylets):
    with Cluster.connect(raylets.address) as cluster:
        assert sorted(done.result for done in cluster.run([part("add", a=1, b=n) for n in range(3)])) == [1, 2, 3]
        with pytest.raises(BadSource, match=r"part fail: on .*: a reason"):
            list(cluster.run([part("fail", kind="known")]))
        with pytest.raises(OssToolsError, match="part fail: failed on a node: ZeroDivisionError: a reason"):
            list(cluster.run([part("fail", kind="unknown")]))
        with pytest.raises(Unreachable, match="lost 4 times"):
            list(cluster.run([part("die")]))
        with pytest.raises(NoRoom, match="on one node"):
            list(cluster.run([part("add", memory=1 << 50, a=1, b=2)]))
        assert [done.result for done in cluster.run([part("add", a=5, b=6)])] == [11]
