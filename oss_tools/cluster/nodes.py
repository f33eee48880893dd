"""A Ray cluster, and parts of work that its nodes do.

What travels is JSON text: an order to a node, its result back. A part names the function that does it; every node has this
program installed, of the same version, and says so if it has not. Ray is imported when a cluster is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from oss_tools import errors
from oss_tools.errors import BadSource, MissingPackage, NoRoom, OssToolsError, Unreachable, Unsupported, how_to_install
from oss_tools.sizes import format_size

AUTO, LOCAL = "auto", "local"
ADDRESS = re.compile(r"auto|local|ray://[^/]+|(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}")
RETRIES = 3  # of a part whose node is lost, or whose process is ended
STORE = 128 << 20  # bytes of shared memory of a cluster that is started here; results are small
WAITING = 0.5  # seconds between two looks at what is done
PATIENCE = 120.0  # seconds without a node that could do any of the parts, in which a lost one may come back
CONNECTING = 10.0  # seconds
SIMD = "OSS_TOOLS_SIMD"


@dataclass(frozen=True)
class Need:
    """What a part takes on its node: cores, bytes of memory, GPUs."""

    cpus: int
    memory: int
    gpus: int = 0


@dataclass(frozen=True)
class Part:
    """A piece of work.

    Attributes:
        what: in words.
        function: "module:name" of what does it; takes the order and the cores that it may use, and returns what JSON can hold.
        order: what JSON can hold.
    """

    what: str
    function: str
    order: dict[str, Any]
    need: Need


@dataclass(frozen=True)
class Done:
    """A finished part: its result, the seconds that it took, and the node's name."""

    part: Part
    result: Any
    seconds: float
    node: str


class Cluster:
    """A connection to Ray. Close it, or use it in a `with`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    @classmethod
    def connect(cls, address: str = AUTO) -> Cluster:
        """The cluster at HOST:PORT or ray://HOST:PORT; AUTO: the one that runs on this machine or that RAY_ADDRESS names, else,
        as with LOCAL, one of this machine alone. Raises MissingPackage, BadSource, Unreachable."""
        if not ADDRESS.fullmatch(address):
            raise BadSource(f"{address!r}: no address of a Ray cluster; HOST:PORT, ray://HOST:PORT, auto or local")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers what it runs on
        try:
            import ray
        except ImportError:
            raise MissingPackage(f"--ray needs Ray: {how_to_install('ray')}") from None
        named = {AUTO: os.environ.get("RAY_ADDRESS", ""), LOCAL: ""}.get(address, address)
        if named not in ("", AUTO, LOCAL):
            _require_reachable(named)
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        try:
            if address != LOCAL:
                with contextlib.suppress(ConnectionError) if address == AUTO else contextlib.nullcontext():
                    ray.init(address=address, **quiet)
                    return cls(ray)
            from numba_kernels.parallel import cores

            ray.init(LOCAL, num_cpus=cores(), include_dashboard=False, object_store_memory=STORE, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise Unreachable(f"no Ray cluster at {address}: {_first_line(error)}") from None
        return cls(ray)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the cluster; parts that are under way end. One that was started here ends."""
        self._ray.shutdown()

    def nodes(self) -> list[Need]:
        """What each living node has."""
        found = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [Need(int(r.get("CPU", 0)), int(r.get("memory", 0)), int(r.get("GPU", 0))) for r in found]

    def cores(self, wanted: int = 0) -> int:
        """How many cores a part is given: as many as wanted; with 0 those of the smallest node that has any."""
        return wanted or min((node.cpus for node in self.nodes() if node.cpus), default=1)

    def require(self, need: Need, what: str) -> None:
        """Raises NoRoom unless a node could do such a part: Ray would wait for one without end."""
        nodes = self.nodes()
        if any(_fits(need, node) for node in nodes):
            return
        gpu = f" and {need.gpus} GPU" if need.gpus else ""
        largest = max(nodes, key=lambda node: (node.gpus >= need.gpus, node.memory), default=Need(0, 0))
        has = f"{largest.cpus} cores, {format_size(largest.memory)}, {largest.gpus} GPUs"
        raise NoRoom(
            f"{what} needs {need.cpus} cores, {format_size(need.memory)}{gpu} on one node; the best of {len(nodes)} has {has}"
        )

    def run(self, parts: Sequence[Part], begun: Callable[[int], None] = lambda nodes: None) -> Iterator[Done]:
        """Does parts, wherever there is room; yields them as they are finished, in any order.

        Args:
            begun: is called with the number of nodes, and again when it changes.

        Raises what a part raises as an OssToolsError; Unreachable if its nodes were lost again and again, or no node is left;
        NoRoom if its process took more memory than its node had. What was yielded until then is done.
        """
        for part in parts:
            self.require(part.need, part.what)
        ray = self._ray
        remote = ray.remote(carry_out)
        simd = _simd()
        under_way: dict[Any, Part] = {}
        for part in parts:
            options = {"num_cpus": part.need.cpus, "memory": part.need.memory, "num_gpus": part.need.gpus}
            task = remote.options(**options, max_retries=RETRIES, name=part.what)
            order = {"program": _program(), "simd": simd, "cores": part.need.cpus, "order": part.order}
            under_way[task.remote(part.function, json.dumps(order))] = part
        known, fitting = 0, time.monotonic()
        try:
            while under_way:
                nodes = self.nodes()
                if len(nodes) != known:
                    begun(known := len(nodes))
                if any(_fits(part.need, node) for part in under_way.values() for node in nodes):
                    fitting = time.monotonic()
                elif time.monotonic() - fitting > PATIENCE:
                    raise Unreachable(
                        f"no node is left that could do {next(iter(under_way.values())).what}; what is finished is kept, and the "
                        "same command goes on"
                    )
                for reference in ray.wait(list(under_way), num_returns=1, timeout=WAITING)[0]:
                    yield self._finished(under_way.pop(reference), reference)
        finally:
            for reference in under_way:
                with contextlib.suppress(Exception):  # of a node that is gone
                    ray.cancel(reference, force=True)

    def _finished(self, part: Part, reference: Any) -> Done:
        from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

        try:
            found = json.loads(self._ray.get(reference))
        except RayTaskError as error:
            raise OssToolsError(f"{part.what}: failed on a node: {_last_line(error)}") from None
        except OutOfMemoryError:
            raise NoRoom(f"{part.what}: took more memory than its node had; --memory limits what a part may take") from None
        except RayError as error:
            about = f"lost {RETRIES + 1} times with its node or process: {type(error).__name__}"
            raise Unreachable(f"{part.what}: {about}; what is finished is kept, and the same command goes on") from None
        if "error" in found:
            kind = getattr(errors, found["error"], OssToolsError)
            raise kind(f"{part.what}: on {found['node']}: {found['message']}")
        return Done(part, found["result"], found["seconds"], found["node"])


def _require_reachable(address: str) -> None:
    """Raises Unreachable where nothing listens: Ray would end the whole process for that."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECTING).close()
    except (OSError, ValueError, OverflowError) as error:
        raise Unreachable(f"no Ray cluster at {address}: {_first_line(error)}") from None


def _fits(need: Need, node: Need) -> bool:
    return need.cpus <= node.cpus and need.memory <= node.memory and need.gpus <= node.gpus


def carry_out(function: str, text: str) -> str:
    """On a node: does a part. JSON text of {"result", "seconds", "node"} or {"error", "message", "node"}."""
    order, node = json.loads(text), _name()
    began = time.perf_counter()
    try:
        _require_same(order["program"], order["simd"])
        module, _, name = function.partition(":")
        result = getattr(importlib.import_module(module), name)(order["order"], order["cores"])
    except OssToolsError as error:
        return json.dumps({"error": type(error).__name__, "message": str(error), "node": node})
    return json.dumps({"result": result, "seconds": time.perf_counter() - began, "node": node})


def _name() -> str:
    """Of this node: that of its machine, and the beginning of Ray's own, as several nodes may be one machine."""
    import ray

    return f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:6]})"


def _require_same(program: str, simd: str) -> None:
    """Raises BadSource where this node has another program, Unsupported where it cannot compute with the same instructions."""
    os.environ.setdefault(SIMD, simd)  # before kernels are imported
    try:
        own = _simd()
    except RuntimeError as error:  # of numba_kernels.simd
        raise Unsupported(f"{error}; set {SIMD} where the command is given to what every node can execute") from None
    if own != simd:
        raise Unsupported(f"computes with {own}, where others do with {simd}; set {SIMD}={simd} there")
    if _program() != program:
        raise BadSource("has another oss-tools than the machine where the command was given; install the same on every node")


def _simd() -> str:
    from numba_kernels.simd.path import path

    return path()


def _program() -> str:
    from oss_tools.machine.program import program

    return program()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2] or type(error).__name__
