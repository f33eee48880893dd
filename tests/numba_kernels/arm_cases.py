"""What is run on the Arm paths: operations with their arguments, and the error of each result."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from arm_attention_cases import attention_cases, latent_cases
from arm_emulator import Arena


def cases(arena: Arena) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """(name, operation, arguments, error of the result) for all kinds of kernels; packing still runs on this machine."""
    from problems import FORMATS, weights

    from numba_kernels.cpu import rows
    from numba_kernels.cpu.groups import one_group
    from numba_kernels.cpu.linear import linear_op
    from numba_kernels.cpu.packed import Packed
    from numba_kernels.cpu.packing import pack
    from numba_kernels.cpu.records import empty_records
    from numba_kernels.reference import ops

    rng = np.random.default_rng(0)
    n, columns, tokens = 19, 256, 13
    x = arena.copy(rng.normal(size=(tokens, columns)).astype(np.float32))
    records = arena.copy(empty_records(tokens, columns))
    result: list[tuple[str, Any, dict[str, Any], Any]] = []
    given = {"x": x, "x_stride": x.strides[0], "records": records, "record_stride": records.strides[0], "rows": tokens}
    codes, scales = ops.quantize_rows(x)
    meant = codes * scales.repeat(32, 1)

    def quantize_error() -> float:
        blocks = records[:, : columns // 32 * 44].reshape(tokens, -1, 44)[..., :32]
        return float(np.abs(np.ascontiguousarray(blocks).view(np.int8).reshape(tokens, -1) - codes).max())

    result.append(("quantize", rows.quantize, {**given, "columns": columns}, quantize_error))
    weight, out = arena.copy(rng.normal(size=columns).astype(np.float32)), arena.copy(np.full_like(x, np.nan))

    def norm_error() -> float:
        return float(np.abs(out - ops.rms_norm(x, weight, 1e-5)).max())

    norm = {
        **given,
        "records": 0,
        "columns": columns,
        "weight": weight,
        "out": out,
        "out_stride": out.strides[0],
        "eps": 1e-5,
    }
    result.append(("rms_norm", rows.rms_norm, norm, norm_error))
    half = arena.copy(np.full((tokens, columns // 2), np.nan, np.float32))

    def gated_error() -> float:
        return float(np.abs(half - ops.clamped_swiglu(x[:, 0::2], x[:, 1::2])).max())

    gate = {
        **given,
        "records": 0,
        "columns": columns // 2,
        "out": half,
        "out_stride": half.strides[0],
        "limit": 7,
        "alpha": 1.702,
    }
    result.append(("swiglu", rows.gated_op("swiglu"), gate, gated_error))
    for name in FORMATS:
        planes, values = weights(name, n, columns, rng)
        packed = Packed(name, 1, n, columns)
        pack(packed, planes)
        data = arena.copy(packed.data)
        for activations in ("int8", "f32"):
            for many in (False, True):
                count = tokens if many else 1
                y = arena.copy(np.full((count, n), np.nan, np.float32))
                quantized = activations == "int8" and packed.layout.decode is not None
                group = one_group(count)
                arguments = {
                    "weights": data, "matrix_bytes": packed.matrix_bytes, "panel_bytes": packed.panel_bytes,
                    "scales_at": packed.scales_at, "blocks": packed.blocks, "shift": packed.shift, "height": n,
                    "panels_at_once": 2, "groups": arena.copy(group.count), "group_matrix": arena.copy(group.matrix),
                    "group_start": arena.copy(group.start), "index": arena.copy(group.index), "bias": 0, "bias_stride": 0,
                    "residual": 0, "out": y, "out_stride": y.strides[0], "x": records if quantized else x,
                    "x_stride": (records if quantized else x).strides[0],
                }  # fmt: skip
                exact = (meant if quantized else x)[:count].astype(np.float64) @ values.T

                def error(y: np.ndarray = y, exact: np.ndarray = exact) -> float:
                    return float(np.abs(y - exact).max() / np.abs(exact).max())

                label = f"linear {name} {activations} {'many' if many else 'one'}"
                result.append((label, linear_op(name, activations, many), arguments, error))
    result += shape_cases(arena, int(os.environ.get("ARM_SEED", "0")))
    for element, head_dim in (("bf16", 20), ("f32", 6), ("bf16", 64)):
        result += attention_cases(arena, element, head_dim)
    for head_dim, products in ((20, "f32"), (64, "f32"), (64, "i16")):
        result += attention_cases(arena, "q8", head_dim, products)
    for element, rank in (("bf16", 40), ("f32", 21)):
        result += latent_cases(arena, element, rank)
    return result + codec_cases(arena)


def shape_cases(arena: Arena, seed: int) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """Odd shapes, drawn: groups of tokens of any size that meet their experts' matrices through an index, in all formats, with
    bias and residual, and all kinds of records, which are written here."""
    import ml_dtypes
    from problems import FORMATS, K_QUANTS, weights

    from numba_kernels.cpu.linear import linear_op
    from numba_kernels.cpu.packed import INT8_GROUPS, Packed
    from numba_kernels.cpu.packing import pack
    from numba_kernels.cpu.records import OFFSETS, RECORDS, empty_records

    rng = np.random.default_rng(seed)
    result: list[tuple[str, Any, dict[str, Any], Any]] = []
    kinds = [(name, kind) for name in FORMATS if name not in ("f16", "f32", "bf16") for kind in ("int8", "int8_g16")]
    for name, kind in [*kinds, ("bf16", "bf16")]:
        n, experts, tokens = int(rng.integers(1, 40)), 5, int(rng.integers(9, 30))
        columns = int(rng.integers(1, 6)) * (256 if name in K_QUANTS else INT8_GROUPS.get(name, 32))
        if name in ("bf16", "int8"):
            columns -= int(rng.integers(0, 31))
        padded = -(-columns // 32) * 32
        packed, values = Packed(name, experts, n, columns), []
        for matrix in range(experts):
            planes, v = weights(name, n, columns, rng)
            pack(packed, planes, matrix=matrix)
            values.append(np.pad(v, ((0, 0), (0, padded - columns))))
        x = np.pad(rng.normal(size=(tokens, columns)).astype(np.float32), ((0, 0), (0, padded - columns)))
        width = RECORDS[kind]
        records = empty_records(tokens, columns, kind)
        blocks = records[:, : padded // 32 * width].reshape(tokens, -1, width)
        if kind == "bf16":
            meant = x.astype(ml_dtypes.bfloat16)
            blocks[...] = meant.view(np.uint8).reshape(blocks.shape)
        else:
            size = 16 if kind == "int8_g16" else 32
            apart = x.reshape(tokens, -1, size)
            scales = (np.abs(apart).max(-1) / 127).astype(np.float32)
            codes = np.rint(apart / np.maximum(scales, 1e-30)[..., None]).astype(np.int8)
            scale_at, start_at, sum_at = OFFSETS[kind]
            each = codes.astype(np.int32).sum(-1).reshape(tokens, -1, 32 // size)
            by_block = scales.reshape(each.shape)
            whole = np.concatenate(
                [
                    codes.reshape(tokens, -1, 32).view(np.uint8),
                    by_block.view(np.uint8),
                    (each * -16).astype(np.int32).view(np.uint8),
                    (each * by_block).sum(-1, keepdims=True, dtype=np.float32).view(np.uint8),
                ],
                -1,
            )
            assert (scale_at, start_at, sum_at, width) == (32, 32 + 128 // size, 32 + 256 // size, whole.shape[-1])
            blocks[...] = whole
            meant = (codes * scales[..., None]).reshape(tokens, padded)
        chosen = np.sort(rng.choice(experts, 3, False))  # experts that have rows
        cuts = np.sort(rng.integers(0, tokens + 1, 2))
        start = np.array([0, *cuts, tokens], np.int32)
        index = rng.permutation(tokens).astype(np.int32)
        bias = rng.normal(size=(experts, n)).astype(np.float32)
        residual = rng.normal(size=(tokens, n)).astype(np.float32)
        out = arena.copy(np.full((tokens, n), np.nan, np.float32))
        exact = np.empty((tokens, n))
        for g, matrix in enumerate(chosen):
            some = slice(start[g], start[g + 1])
            product = meant[index[some]].astype(np.float64) @ values[matrix].T.astype(np.float64)
            exact[some] = product + bias[matrix] + residual[some]
        given = arena.copy(records)
        arguments = {
            "weights": arena.copy(packed.data), "matrix_bytes": packed.matrix_bytes, "panel_bytes": packed.panel_bytes,
            "scales_at": packed.scales_at, "blocks": packed.blocks, "shift": packed.shift, "height": n,
            "panels_at_once": 2, "groups": arena.copy(np.array([3], np.int32)),
            "group_matrix": arena.copy(chosen.astype(np.int32)),
            "group_start": arena.copy(start), "index": arena.copy(index), "bias": arena.copy(bias), "bias_stride": 4 * n,
            "residual": arena.copy(residual), "out": out, "out_stride": out.strides[0], "x": given,
            "x_stride": given.strides[0],
        }  # fmt: skip

        def error(out: np.ndarray = out, exact: np.ndarray = exact) -> float:
            return float(np.abs(out - exact).max() / np.abs(exact).max())

        result.append((f"shapes {name} {kind}", linear_op(name, kind, True), arguments, error))
    return result


def codec_cases(arena: Arena) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """Rows are searched and rounded to the bytes that the plain twins make."""
    from numba_kernels.codec import ggml, iq4_nl, mxfp4, nvfp4, tables
    from numba_kernels.codec.call import bound
    from numba_kernels.reference import formats as twin
    from numba_kernels.reference import ggml as ggml_twin

    rng = np.random.default_rng(0)
    rows, columns = 3, 96
    values = arena.copy((rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-6, 3, (rows, 1))).astype(np.float32))
    weights = arena.copy(rng.random((1, columns)).astype(np.float32))
    x, w = values.reshape(-1, 32), np.broadcast_to(weights, values.shape).reshape(-1, 32)
    given = {"values": values, "values_stride": 4 * columns, "weights": weights, "weights_stride": 0, "rows": rows}
    given |= {"columns": columns, "errors": arena.copy(np.zeros((rows, 4))), "errors_stride": 32}
    result: list[tuple[str, Any, dict[str, Any], Any]] = []

    def add(name: str, op: Any, wanted: list[np.ndarray], **parameters: Any) -> None:
        made = [arena.copy(np.zeros((rows, plane.size // rows), np.uint8)) for plane in wanted]
        planes = dict(zip(("blocks", "scales"), made, strict=False))
        strides = {f"{key}_stride": plane.shape[1] for key, plane in planes.items()}

        def error() -> float:
            return float(sum((a.reshape(b.shape) != b).sum() for a, b in zip(made, wanted, strict=True)))

        result.append((f"{name} blocks", op, {**given, **planes, **strides, **parameters}, error))

    steps = arena.copy(tables.STEPS_8_BITS)
    add("q8_0", bound(ggml.quantize_q8_0, SEARCH=True), [ggml_twin.quantize_q8_0(x, "search", w)], steps=steps)
    for bits in (4, 5):
        steps = arena.copy(tables.STEPS_SYMMETRIC[bits])
        wanted = [ggml_twin.quantize_nibbles(x, bits, False, "search", w)]
        add(f"q{bits}_0", bound(ggml.quantize_symmetric, SEARCH=True, BITS=bits), wanted, steps=steps)
        steps = arena.copy(tables.STEPS_MINIMUM[bits])
        wanted = [ggml_twin.quantize_nibbles(x, bits, True, "search", w)]
        add(f"q{bits}_1", bound(ggml.quantize_minimum, SEARCH=True, BITS=bits), wanted, steps=steps)
    steps = arena.copy(tables.STEPS_IQ4_NL)
    add("iq4_nl", bound(iq4_nl.quantize_iq4_nl, SEARCH=True), [ggml_twin.quantize_iq4_nl(x, "search", w)], steps=steps)
    for rule in ("search", "ceil", "ocp"):
        add(f"mxfp4 {rule}", bound(mxfp4.quantize_mxfp4, RULE=rule), list(twin.quantize_mxfp4(x, rule, w)))
    scale, steps = np.float32(0.01), arena.copy(tables.NVFP4_SEARCH)
    wanted = list(twin.quantize_nvfp4(x.reshape(-1, 16), scale, "search", w.reshape(-1, 16)))
    add("nvfp4", bound(nvfp4.quantize_nvfp4, SEARCH=True), wanted, steps=steps, tensor_scale=scale)
    return result
