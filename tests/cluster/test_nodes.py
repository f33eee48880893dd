"""What is asked of a cluster, and what becomes of failures. Ray itself is asked in test_ray.py."""

import json
import subprocess
import sys

import pytest

from oss_tools import errors
from oss_tools.cli._ray import with_address
from oss_tools.cluster import nodes
from oss_tools.cluster.nodes import Cluster, Need, Part, carry_out
from oss_tools.errors import BadSource, MissingPackage, NoRoom, Unreachable

ALONE = """
import sys
from oss_tools.cli.main import main
sys.argv = {command}
try:
    main()
except SystemExit:
    print("ray" in sys.modules)
"""
OWN = {"program": nodes._program(), "simd": nodes._simd(), "cores": 3}


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (["a", "--ray"], "auto"),
        (["--ray", "a", "b"], "auto"),
        (["--ray", "--limit", "3"], "auto"),
        (["--ray", "owner/name:4"], "auto"),
        (["--ray", "10.0.0.5:6379", "a"], None),
        (["--ray", "[::1]:6379"], None),
        (["--ray", "ray://head:10001"], None),
        (["--ray", "local", "a"], None),
        (["--ray=head:1"], None),
        (["a", "--", "--ray"], None),
    ],
)
def test_the_address_may_be_left_out(given, address):
    found = with_address(given)
    assert (f"--ray={address}" in found) == (address is not None)
    assert [part.partition("=")[0] for part in found if part != f"--ray={address}"] == [
        part.partition("=")[0] for part in given if address is None or part != "--ray"
    ]


@pytest.mark.parametrize("address", ["", "head", "head:x", "http://head:1", "a b:1", "ray://"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(BadSource, match="no address of a Ray cluster"):
        Cluster.connect(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:99999", "no.such.host.invalid:1"]
)
def test_where_no_cluster_is_a_line_says_so(address):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with pytest.raises(Unreachable, match="no Ray cluster at"):
        Cluster.connect(address)


def test_the_address_of_the_environment_is_looked_at_as_well(monkeypatch):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        Cluster.connect("auto")


def test_without_ray_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r"pip install '\.\[ray\]'"):
        Cluster.connect("local")


@pytest.mark.parametrize("verb", ["eval", pytest.param("compare", marks=pytest.mark.slow)])
def test_without_the_option_nothing_of_ray_is_imported(tmp_path, verb):
    few = ["--suite", "tool_use", "--limit", "2", "--max-tokens", "8", "--threads", "1", "-q"]
    more = ["--formats", "bf16,q4_0", "--chunks", "1", "--repeat", "0"] if verb == "compare" else []
    command = ["oss-tools", verb, "tiny", *few, *more, "--output", str(tmp_path / "run")]
    code = ALONE.format(command=command)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert (tmp_path / "run").is_dir()


class Lost:
    """A Ray whose only node is lost as soon as it has a task."""

    def __init__(self):
        self.cancelled, self.given = [], False

    def nodes(self):
        return [{"Alive": not self.given, "Resources": {"CPU": 1.0, "memory": 2.0}}]

    def remote(self, *arguments):
        self.given = len(arguments) == 2
        return "a reference" if self.given else self

    def options(self, **_):
        return self

    def wait(self, references, **_):
        return [], references

    def cancel(self, reference, force):
        self.cancelled.append(reference)


def test_where_all_nodes_are_lost_the_run_ends(monkeypatch):
    monkeypatch.setattr(nodes, "PATIENCE", 0.0)
    ray = Lost()
    with pytest.raises(Unreachable, match="no node is left that could do the part"):
        list(Cluster(ray).run([Part("the part", "", {}, Need(1, 1))]))
    assert ray.cancelled == ["a reference"]


class Nodes:
    """Says what nodes a cluster has."""

    def __init__(self, *resources, dead=()):
        self._nodes = [{"Alive": True, "Resources": r} for r in resources] + [{"Alive": False, "Resources": r} for r in dead]

    def nodes(self):
        return self._nodes


def test_what_no_node_has_room_for_is_refused_at_once():
    cluster = Cluster(
        Nodes(
            {"CPU": 4.0, "memory": 8e9}, {"CPU": 64.0, "memory": 2e9, "GPU": 1.0}, {}, dead=[{"CPU": 64.0, "memory": 1e12}]
        )
    )
    cluster.require(Need(4, 8_000_000_000), "a part")
    cluster.require(Need(64, 1, 1), "a part")
    for need in (Need(5, 8_000_000_000), Need(1, 9_000_000_000), Need(4, 8_000_000_000, 1), Need(65, 1)):
        with pytest.raises(NoRoom, match="a part needs"):
            cluster.require(need, "a part")
    assert cluster.cores() == 4
    assert cluster.cores(2) == 2


# ---- on a node ------------------------------------------------------------------------------------------------------


def twice(order, cores):
    return {"value": 2 * order["value"], "cores": cores}


def refuse(order, cores):
    raise getattr(errors, order["kind"])("a reason")


@pytest.fixture(autouse=True)
def node(monkeypatch):
    monkeypatch.setattr(nodes, "_name", lambda: "here")


def carried_out(name, order, **more):
    return json.loads(carry_out(f"{__name__}:{name}", json.dumps({**OWN, "order": order, **more})))


def test_a_part_is_done():
    found = carried_out("twice", {"value": 4})
    assert found["result"] == {"value": 8, "cores": 3}
    assert found["node"] == "here"
    assert found["seconds"] >= 0


@pytest.mark.parametrize("kind", ["BadSource", "NoRoom", "BadRequest"])
def test_an_error_that_a_user_can_mend_comes_back_as_what_it_is(kind):
    assert carried_out("refuse", {"kind": kind}) == {"error": kind, "message": "a reason", "node": "here"}


def test_another_program_is_refused():
    found = carried_out("twice", {"value": 4}, program="another")
    assert found["error"] == "BadSource"
    assert "same on every node" in found["message"]


def test_other_instructions_are_refused():
    found = carried_out("twice", {"value": 4}, simd="another")
    assert found["error"] == "Unsupported"
    assert "OSS_TOOLS_SIMD=another" in found["message"]
