"""The kernels' speeds at gpt-oss-20b's shapes, each held against a ceiling of the same run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from numba_kernels.bench.ceilings import (
    CHAINS,
    REGISTER_PRODUCTS,
    STEPS,
    dot_step,
    fma_step,
    pairs_step,
    peak,
    register_peak,
)
from numba_kernels.bench.problems import random_planes, random_weights
from numba_kernels.bench.timing import Result, Timer
from numba_kernels.cpu import attention, experts, kv_pages, rows
from numba_kernels.cpu.groups import Groups, expert_groups, one_group
from numba_kernels.cpu.huge_pages import empty_bytes
from numba_kernels.cpu.k_panels import K_BLOCKS
from numba_kernels.cpu.linear import add_linear
from numba_kernels.cpu.op import op
from numba_kernels.cpu.packed import Packed, all_formats
from numba_kernels.cpu.packing import pack
from numba_kernels.cpu.probe import reading
from numba_kernels.cpu.records import empty_records, quantizing_to
from numba_kernels.cpu.team import Program
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES

HIDDEN, INNER, EXPERTS, TOP = 2880, 2880, 32, 4
HEADS, KV_HEADS, HEAD_DIM = 64, 8, 64
BIG = 256 << 20  # bytes that no cache holds


@op
def nothing(team, thread):  # type: ignore[no-untyped-def]
    """An operation without work: what remains is the barrier."""


class Bench(Timer):
    """Runs the kernels and holds their speed against the ceilings."""

    def __init__(self, threads: int, quick: bool, only: str = "") -> None:
        super().__init__(threads, quick)
        self.only = only
        self.rng = np.random.default_rng(0)

    def wants(self, name: str) -> bool:
        return self.only in name

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
        if ACTIVE.matrix_registers:
            for name, of_bytes, operations, unit in (("byte", 1, 8, "GOP/s"), ("bfloat16", 0, 4, "GFLOP/s")):
                program = Program()
                program.add(op(register_peak).bind(OF_BYTES=of_bytes), x=small, pieces=pieces, out=np.zeros(1, np.float32))
                yield self._ceiling(f"matrix {name} peak", program, pieces * STEPS * REGISTER_PRODUCTS * operations, unit)

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
        if kind == "bf16" and ACTIVE.multiplies_bf16:
            ceiling = "matrix bfloat16 peak" if ACTIVE.matrix_registers else "bfloat16 peak"
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
        program = Program()
        self._add_attention(program, tokens, depth, window)
        seen = sum(min(p + 1, window or p + 1) for p in range(depth - tokens, depth))
        label = f"attention × {tokens} token{'s' if tokens > 1 else ''} at {depth}{f', window {window}' if window else ''}"
        return self.measure(label, program, 4.0 * seen * HEADS * HEAD_DIM, "GFLOP/s", "multiply-add peak")

    def attention_from_memory(self, depth: int) -> Result:
        """Attention of one token in several layers, whose keys and values no cache holds."""
        program, read = Program(), 0
        while read < BIG:
            read += self._add_attention(program, 1, depth)
        return self.measure(f"attention × 1 token at {depth}, from memory", program, read, "GB/s", "memory read")

    def _add_attention(self, program: Program, tokens: int, depth: int, window: int = 0) -> int:
        """A layer's attention, over keys and values of its own; their bytes."""
        pages = kv_pages.Pages(KV_HEADS, HEAD_DIM)
        count = depth // pages.positions
        memory = pages.allocate(count)
        memory.view(np.uint16)[:] = self.rng.integers(0x3C00, 0x3F00, (count, pages.nbytes // 2), dtype=np.uint16)
        qkv = self.rng.normal(size=(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)).astype(np.float32)
        out = np.zeros((tokens, HEADS * HEAD_DIM), np.float32)
        program.add(
            attention.attention_op(HEADS // KV_HEADS * tokens, products="bf16"),
            qkv=qkv, stride=qkv.strides[0], rows=tokens, value_dim=HEAD_DIM, out=out, out_stride=out.strides[0],
            sequences=1, first_row=np.zeros(1, np.int32), row_count=np.array([tokens], np.int32),
            positions=np.arange(depth - tokens, depth, dtype=np.int32), heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM,
            window=window, sinks=np.zeros(HEADS, np.float32), pages=memory, page_bytes=pages.nbytes,
            page_positions=pages.positions, tables=np.arange(count, dtype=np.int32), table_stride=4 * count, ring=count,
            divided=tokens == 1, **attention.attention_scratch(1024, HEAD_DIM),
        )  # fmt: skip
        return int(memory.nbytes)

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
            yield self.attention_from_memory(32768)
        if self.wants("rows"):
            for count in (1, 512):
                yield from self.row_operations(count)
        if self.wants("pack"):
            for name in ("mxfp4", "q8_0", "bf16"):
                yield self.packing(name)
