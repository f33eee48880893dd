"""Each kernel's speed beside what this machine can do at most, measured in the same run.

    python -m numba_kernels.bench [--threads N] [--only TEXT] [--quick] [--json]

Ceilings: reading memory, the dot products of int8 and of bfloat16 (where there is one) and the fused multiply-add from registers.
Shapes are gpt-oss-20b's.
Figures mean something on a quiet machine only; the load average is part of the record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba.extending import intrinsic

from numba_kernels.cpu import attention, experts, kv_pages, rows
from numba_kernels.cpu.blocks import LAYOUTS, Shorts
from numba_kernels.cpu.huge_pages import empty_bytes
from numba_kernels.cpu.k_panels import K_BLOCKS
from numba_kernels.cpu.linear import Groups, add_linear, expert_groups, one_group
from numba_kernels.cpu.op import op
from numba_kernels.cpu.packed import INT8_GROUPS, Packed, all_formats
from numba_kernels.cpu.packing import GGML_BLOCKS, pack
from numba_kernels.cpu.probe import reading
from numba_kernels.cpu.records import empty_records, quantizing_to
from numba_kernels.cpu.team import Program, Team, take
from numba_kernels.parallel import cores
from numba_kernels.simd import instructions as emit
from numba_kernels.simd import path
from numba_kernels.simd.memory import load_floats, set_f32
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Tile, spill, zero_tile
from numba_kernels.simd.values import LANES, Address, Bytes, Words, sum_lanes

HIDDEN, INNER, EXPERTS, TOP = 2880, 2880, 32, 4
HEADS, KV_HEADS, HEAD_DIM = 64, 8, 64
BIG = 256 << 20  # bytes that no cache holds


@dataclass
class Result:
    """One measurement: `value` in `unit`, the ceiling that it is held against, and the spread of the times."""

    name: str
    value: float
    unit: str
    ceiling: str = ""
    share: float | None = None
    microseconds: float = 0.0
    spread: float = 0.0


# ---- ceilings -------------------------------------------------------------------------------------------------------


CHAINS, STEPS = 12, 20000  # independent accumulators; steps of a piece of work


def _step(name: str, body: Callable[..., Any]) -> Any:
    """An intrinsic (tile, address) -> tile that applies body(builder, lane vector, address) to each accumulator."""

    def typing(typing_context: Any, tile: Any, address: Any) -> Any:
        def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
            result = args[0]
            for t in range(tile.count):
                result = b.insert_value(result, body(b, b.extract_value(args[0], t), args[1]), t)
            return result

        return (tile(tile, Address), lower) if isinstance(tile, Tile) else None

    typing.__name__ = name
    return intrinsic(typing)


def _dot(b: Any, total: Any, address: Any) -> Any:
    """A dot product of bytes; where the path sums in 16 bits, of the total's own bytes, or all accumulators would share one."""
    codes, x = (emit.load(b, emit.advance(b, address, 4 * LANES * i), Bytes.llvm) for i in range(2))
    if ACTIVE.narrow_sums:
        return b.bitcast(ACTIVE.dot_narrow(b, b.bitcast(total, Shorts), codes, b.bitcast(total, Bytes.llvm)), total.type)
    return b.bitcast(ACTIVE.dot_unsigned(b, b.bitcast(total, Words.llvm), codes, x), total.type)


def _fma(b: Any, total: Any, address: Any) -> Any:
    x, y = (emit.load(b, emit.advance(b, address, 4 * LANES * i), total.type) for i in range(2))
    return ACTIVE.fma(b, x, y, total)


def _pairs(b: Any, total: Any, address: Any) -> Any:
    pairs = emit.load(b, address, Words.llvm)
    x = emit.splat(b, emit.load(b, emit.advance(b, address, 4 * LANES), emit.I32), LANES)
    return ACTIVE.dot_pairs(b, total, pairs, x)


dot_step, fma_step, pairs_step = _step("dot_step", _dot), _step("fma_step", _fma), _step("pairs_step", _pairs)
step: Any = dot_step


def peak(x, pieces, out, team, thread):  # type: ignore[no-untyped-def]
    """CHAINS accumulators in registers, STEPS times in each piece of work."""
    item = take(team)
    while item < pieces:
        tile = zero_tile(CHAINS)
        for k in range(STEPS):
            tile = step(tile, x + k % 8 * 8 * LANES)
        results = spill(tile)
        total = load_floats(results)
        for t in range(1, CHAINS):
            total = total + load_floats(results + t * LANES * 4)
        set_f32(out + 4 * item, sum_lanes(total))
        item = take(team)


@op
def nothing(team, thread):  # type: ignore[no-untyped-def]
    """An operation without work: what remains is the barrier."""


# ---- problems -------------------------------------------------------------------------------------------------------


def random_planes(name: str, count: int, columns: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Planes of a random matrix whose scales are moderate numbers."""

    def any_bytes(width: int) -> np.ndarray:
        return rng.integers(0, 256, (count, width), dtype=np.uint8)

    if name == "mxfp4":
        return {"blocks": any_bytes(columns // 2), "scales": any_bytes(columns // 32) % 8 + 118}
    if name in GGML_BLOCKS:
        raw = any_bytes(columns // 32 * GGML_BLOCKS[name][0]).reshape(count, columns // 32, -1)
        for at in range(0, LAYOUTS[name].scale_bytes, 2):
            raw[..., at], raw[..., at + 1] = 0, 0x1C  # a half-precision 0.004
        return {"blocks": raw.reshape(count, -1)}
    if name in K_BLOCKS:
        block = K_BLOCKS[name]
        raw = any_bytes(columns // 256 * block.nbytes).reshape(count, columns // 256, -1)
        for at in block.halves:
            if at >= 0:
                raw[..., at], raw[..., at + 1] = 0, 0x08  # a half-precision 0.0001
        return {"blocks": raw.reshape(count, -1)}
    if name.startswith("int8"):
        groups = columns // INT8_GROUPS.get(name, columns)
        return {"codes": any_bytes(columns).view(np.int8), "scales": np.full((count, groups), 0x3B80, np.uint16)}
    values = rng.normal(size=(count, columns)).astype(np.float32)
    if name == "bf16":
        return {"values": (values.view(np.uint32) >> 16).astype(np.uint16)}
    return {"values": values.astype(np.float16 if name == "f16" else np.float32)}


def random_weights(name: str, matrices: int, height: int, columns: int, rng: np.random.Generator) -> Packed:
    """A packed matrix, its first panels repeated to its size."""
    packed = Packed(name, matrices, height, columns)
    few = Packed(name, 1, min(height, 8 * LANES), columns)
    pack(few, random_planes(name, few.rows, columns, rng))
    flat = packed.data.reshape(-1, packed.panel_bytes)
    for at in range(0, len(flat), few.panels):
        flat[at : at + few.panels] = few.data[0][: len(flat) - at]
    return packed


class Bench:
    """Runs programs on a team and holds their speed against the ceilings."""

    def __init__(self, threads: int, quick: bool, only: str = "") -> None:
        self.team, self.quick, self.only = Team(threads), quick, only
        self.rng = np.random.default_rng(0)
        self.ceilings: dict[str, float] = {}

    def wants(self, name: str) -> bool:
        return self.only in name

    def seconds(self, program: Program, each: int = 1) -> tuple[float, float]:
        """Median seconds of a replay (of one of `each` operations), and the interquartile range as a share of it."""
        times: list[float] = []
        settle = time.perf_counter() + (0.05 if self.quick else 0.3)  # the threads find their cores
        self.team.run(program)
        while time.perf_counter() < settle:
            self.team.run(program)
        budget = time.perf_counter() + (0.2 if self.quick else 1.0)
        while len(times) < 5 or (time.perf_counter() < budget and len(times) < 200):
            began = time.perf_counter()
            self.team.run(program)
            times.append((time.perf_counter() - began) / each)
        low, middle, high = statistics.quantiles(times, n=4)
        return middle, (high - low) / middle

    def measure(self, name: str, program: Program, amount: float, unit: str, ceiling: str = "", each: int = 1) -> Result:
        """The amount (bytes or operations) per second, in billions; microseconds where the unit is µs."""
        median, spread = self.seconds(program, each)
        value = median * 1e6 if unit == "µs" else amount / median / 1e9
        share = value / self.ceilings[ceiling] if ceiling else None
        return Result(name, value, unit, ceiling, share, median * 1e6, spread)

    # ---- ceilings ---------------------------------------------------------------------------------------------------

    def measure_ceilings(self) -> Iterator[Result]:
        memory = empty_bytes(BIG)
        memory[::4096] = 1
        yield self._ceiling("memory read", *reading([memory]), "GB/s")
        pieces = 16 * self.team.threads
        small = self.rng.integers(0, 20, 64 * LANES + 64, dtype=np.uint8)
        for name, which, operations in (
            ("dot-product peak", dot_step, 8 * LANES),
            ("multiply-add peak", fma_step, 2 * LANES),
            ("bfloat16 peak", pairs_step, 4 * LANES),
        ):
            if which is pairs_step and not ACTIVE.bf16_products:
                continue
            program = Program()
            kernel = op(peak).bind(NAME=name.split()[0].replace("-", "_"), step=which)
            program.add(kernel, x=small, pieces=pieces, out=np.zeros(pieces, np.float32))
            unit = "GOP/s" if which is dot_step else "GFLOP/s"
            yield self._ceiling(name, program, pieces * STEPS * CHAINS * operations, unit)

    def _ceiling(self, name: str, program: Program, amount: float, unit: str) -> Result:
        result = self.measure(name, program, amount, unit)
        self.ceilings[name] = result.value
        return result

    # ---- kernels ----------------------------------------------------------------------------------------------------

    def overhead(self) -> Iterator[Result]:
        program = Program()
        for _ in range(1000):
            program.add(nothing)
        yield self.measure("barrier between operations", program, 1, "µs", each=1000)
        program = Program()
        program.add(nothing)
        yield self.measure("replay of one operation", program, 1, "µs")

    def activations(self, packed: Packed, tokens: int, kind: str = "int8") -> np.ndarray:
        """Rows of activations for a matrix."""
        x = np.zeros((tokens, packed.blocks * 32), np.float32)
        x[:, : packed.columns] = self.rng.normal(size=(tokens, packed.columns))
        if (packed.layout.decode is None and kind != "bf16") or kind == "f32":
            return x
        out = empty_records(tokens, packed.columns, kind)
        strides = {"x_stride": x.strides[0], "record_stride": out.strides[0]}
        self.team.call(quantizing_to(rows.quantize, kind), x=x, records=out, rows=tokens, columns=packed.columns, **strides)
        return out

    def linear(self, name: str, tokens: int, packed: Packed, kind: str = "int8") -> Result:
        """A dense layer: bytes of weights per second for one token, operations per second for many."""
        program = Program()
        out = np.zeros((tokens, packed.rows), np.float32)
        x = self.activations(packed, tokens, kind)
        add_linear(program, packed, one_group(tokens), x, out, activations=kind, threads=self.team.threads)
        label = f"{name} × {tokens} token{'s' if tokens > 1 else ''}{f' ({kind} activations)' if kind != 'int8' else ''}"
        if tokens <= 2:
            return self.measure(label, program, packed.nbytes, "GB/s", "memory read")
        is_float = packed.layout.decode is None or kind == "f32"
        ceiling, unit = ("multiply-add peak", "GFLOP/s") if is_float else ("dot-product peak", "GOP/s")
        if kind == "bf16" and ACTIVE.bf16_products:
            ceiling = "bfloat16 peak"
        return self.measure(label, program, 2.0 * packed.rows * packed.columns * tokens, unit, ceiling)

    def linears(self) -> Iterator[Result]:
        for name in all_formats():
            columns = 2816 if name == "int8_g128" or name in K_BLOCKS else HIDDEN
            if self.wants(f"linear {name}"):
                height = BIG // max(Packed(name, 1, LANES, columns).panel_bytes // LANES, 1) // LANES * LANES
                big = random_weights(name, 1, height, columns, self.rng)
                yield self.linear(f"linear {name}", 1, big)
                if name in ("mxfp4", "q8_0"):
                    yield self.linear(f"linear {name}", 1, big, "f32")
                    yield self.linear(f"linear {name}", 2, big)
                small = random_weights(name, 1, 5760, columns, self.rng)
                for tokens in (4, 8, 96, 512) if name in ("mxfp4", "q8_0") else (512,):
                    yield self.linear(f"linear {name}", tokens, small)
                if name == "bf16":
                    yield self.linear(f"linear {name}", 1, big, "bf16")
                    yield self.linear(f"linear {name}", 512, small, "bf16")

    def expert_layer(self, tokens: int) -> Iterator[Result]:
        """The first matrix of gpt-oss's experts, for one token from memory and for a prompt."""
        packed = random_weights("mxfp4", EXPERTS, 2 * INNER, HIDDEN, self.rng)
        out = np.zeros((tokens * TOP, 2 * INNER), np.float32)
        x = self.activations(packed, tokens)
        program = Program()
        count = 8 if tokens == 1 else 1
        for _ in range(count):  # other experts each time, so that none is still in the cache
            groups = self.chosen_experts(tokens)
            add_linear(program, packed, groups, x, out, single=tokens == 1, threads=self.team.threads)
        if tokens == 1:
            read = float(TOP * packed.matrix_bytes)
            yield self.measure("experts mxfp4 × 1 token", program, read, "GB/s", "memory read", each=count)
        else:
            operations = 2.0 * tokens * TOP * packed.rows * packed.columns
            yield self.measure(f"experts mxfp4 × {tokens} tokens", program, operations, "GOP/s", "dot-product peak")

    def chosen_experts(self, tokens: int) -> Groups:
        """TOP random experts for every token, sorted."""
        groups = expert_groups(tokens, TOP, EXPERTS)
        ids = np.array([self.rng.permutation(EXPERTS)[:TOP] for _ in range(tokens)], np.int32)
        self.team.call(
            experts.group_by_expert, ids=ids, rows=tokens, top=TOP, experts=EXPERTS, groups=groups.count,
            group_expert=groups.matrix, group_start=groups.start, index=groups.index, place=np.zeros_like(ids),
        )  # fmt: skip
        return groups

    def attention(self, tokens: int, depth: int, window: int = 0) -> Result:
        """Attention of the last `tokens` of `depth` positions."""
        pages = kv_pages.Pages(KV_HEADS, HEAD_DIM)
        count = depth // pages.positions
        memory = pages.allocate(count)
        memory.view(np.uint16)[:] = self.rng.integers(0x3C00, 0x3F00, (count, pages.nbytes // 2), dtype=np.uint16)
        qkv = self.rng.normal(size=(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)).astype(np.float32)
        out = np.zeros((tokens, HEADS * HEAD_DIM), np.float32)
        kernel = attention.attention_op(HEADS // KV_HEADS * tokens, products="bf16")
        program = Program()
        program.add(
            kernel, qkv=qkv, stride=qkv.strides[0], rows=tokens, value_dim=HEAD_DIM, out=out, out_stride=out.strides[0],
            sequences=1, first_row=np.zeros(1, np.int32), row_count=np.array([tokens], np.int32),
            positions=np.arange(depth - tokens, depth, dtype=np.int32), heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM,
            window=window, sinks=np.zeros(HEADS, np.float32), pages=memory, page_bytes=pages.nbytes,
            page_positions=pages.positions, tables=np.arange(count, dtype=np.int32), table_stride=4 * count, ring=count,
            divided=tokens == 1, **attention.attention_scratch(1024, HEAD_DIM),
        )  # fmt: skip
        seen = sum(min(p + 1, window or p + 1) for p in range(depth - tokens, depth))
        label = f"attention × {tokens} token{'s' if tokens > 1 else ''} at {depth}{f', window {window}' if window else ''}"
        return self.measure(label, program, 4.0 * seen * HEADS * HEAD_DIM, "GFLOP/s", "multiply-add peak")

    def row_operations(self, count: int) -> Iterator[Result]:
        """What reads and writes rows only."""
        x, out = np.ones((count, 2 * INNER), np.float32), np.zeros((count, HIDDEN), np.float32)
        records = empty_records(count, HIDDEN)
        common = {
            "x": x, "x_stride": x.strides[0], "records": records, "record_stride": records.strides[0], "rows": count,
            "columns": HIDDEN,
        }  # fmt: skip
        written = {"out": out, "out_stride": out.strides[0]}
        weight = np.ones(HIDDEN, np.float32)
        logits, ids = np.ones((count, EXPERTS), np.float32), np.zeros((count, TOP), np.int32)
        shares, place = np.zeros((count, TOP), np.float32), np.zeros((count, TOP), np.int32)
        todo: list[tuple[str, Any, dict[str, Any]]] = [
            ("rms_norm and quantize", rows.rms_norm, {**common, **written, "weight": weight, "eps": 1e-5}),
            ("quantize", rows.quantize, common),
            ("swiglu and quantize", rows.gated_op("swiglu"), {**common, "out": 0, "out_stride": 0, "limit": 7, "alpha": 1.702}),
            ("route", experts.route, {
                "logits": logits, "logits_stride": logits.strides[0], "rows": count, "experts": EXPERTS, "top": TOP,
                "ids": ids, "weights": shares,
            }),
            ("combine", experts.combine, {
                "x": np.ones((TOP * count, HIDDEN), np.float32), "x_stride": HIDDEN * 4, "place": place, "weights": shares,
                "rows": count, "top": TOP, "columns": HIDDEN, "residual": out, **written,
            }),
        ]  # fmt: skip
        for name, operation, arguments in todo:
            program = Program()
            program.add(operation, **arguments)
            yield self.measure(f"{name} × {count} token{'s' if count > 1 else ''}", program, 1, "µs")

    def packing(self, name: str) -> Result:
        """Loading's work: from planes to panels."""
        packed = Packed(name, 1, 8192, HIDDEN)
        planes = random_planes(name, packed.rows, HIDDEN, self.rng)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            pack(packed, planes, threads=self.team.threads)
            times.append(time.perf_counter() - began)
        seconds = min(times[1:])
        value = packed.nbytes / seconds / 1e9
        share = value / self.ceilings["memory read"]
        return Result(f"pack {name}", value, "GB/s", "memory read", share, seconds * 1e6)

    def run(self) -> Iterator[Result]:
        """Everything, the ceilings first."""
        yield from self.measure_ceilings()
        if self.wants("overhead"):
            yield from self.overhead()
        yield from self.linears()
        for tokens in (1, 512):
            if self.wants("experts"):
                yield from self.expert_layer(tokens)
        if self.wants("attention"):
            for tokens, depth, window in ((1, 4096, 0), (1, 4096, 128), (512, 512, 0), (512, 4096, 0), (512, 4096, 128)):
                yield self.attention(tokens, depth, window)
        if self.wants("rows"):
            for count in (1, 512):
                yield from self.row_operations(count)
        if self.wants("pack"):
            for name in ("mxfp4", "q8_0", "bf16"):
                yield self.packing(name)


def line(r: Result) -> str:
    """One line of the table."""
    held = f"{r.share:7.0%} of {r.ceiling}" if r.share is not None else ""
    return f"{r.name:44s} {r.value:9.1f} {r.unit:8s} {r.microseconds:11.1f} µs ±{r.spread:4.0%} {held}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m numba_kernels.bench", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--threads", type=int, default=cores(), help="threads of the team; by default all cores")
    parser.add_argument(
        "--only", default="", help="kernels whose name holds this text: linear q8_0, experts, attention, rows, …"
    )
    parser.add_argument("--quick", action="store_true", help="short runs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args(arguments)
    bench = Bench(options.threads, options.quick, options.only)
    head = {
        "cpu": llvm.get_host_cpu_name(), "machine": platform.machine(), "path": path(), "threads": options.threads,
        "numba": version("numba"), "llvmlite": version("llvmlite"), "numpy": np.__version__, "load": os.getloadavg()[0],
    }  # fmt: skip
    if not options.json:
        print(", ".join(f"{k} {v}" for k, v in head.items()))
    results = []
    for result in bench.run():
        results.append(asdict(result))
        if not options.json:
            print(line(result), flush=True)
    bench.team.close()
    if options.json:
        print(json.dumps({**head, "load_after": os.getloadavg()[0], "results": results}, indent=1))


if __name__ == "__main__":
    main()
