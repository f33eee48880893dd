"""Random weights in every format, with the values that somebody else's code says they have."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np

from numba_kernels.cpu.records import empty_records
from numba_kernels.cpu.rows import quantize
from numba_kernels.reference.ops import quantize_rows

GGML = {name: gguf.GGMLQuantizationType[name.upper()] for name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")}
K_QUANTS = {  # where the half-precision scales of a block lie
    "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
}  # fmt: skip
FORMATS = ("mxfp4", *GGML, *K_QUANTS, "int8", "int8_g128", "int8_g32", "bf16", "f16", "f32")
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def weights(name: str, rows: int, columns: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Planes of a random matrix in a format, and its values as float32."""
    if name == "mxfp4":
        blocks = rng.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
        scales = rng.integers(118, 126, (rows, columns // 32), dtype=np.uint8)
        codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(rows, columns)
        return {"blocks": blocks, "scales": scales}, FP4[codes] * np.exp2(scales.astype(np.float32) - 127).repeat(32, 1)
    if name in GGML:
        block, size = gguf.GGML_QUANT_SIZES[GGML[name]]
        raw = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
        scales = rng.uniform(0.001, 0.02, (rows, columns // block, 2)).astype(np.float16).view(np.uint8)
        count = 4 if name in ("q4_1", "q5_1") else 2  # a scale, or a scale and a minimum
        raw[..., :count] = scales[..., :count]
        raw = raw.reshape(rows, -1)
        return {"blocks": raw}, gguf.dequantize(raw, GGML[name]).reshape(rows, columns)
    if name in K_QUANTS:
        kind = gguf.GGMLQuantizationType[name.upper()]
        raw = rng.integers(0, 256, (rows, columns // 256, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        for at in K_QUANTS[name]:
            raw[..., at : at + 2] = rng.uniform(1e-5, 2e-4, (rows, columns // 256, 1)).astype(np.float16).view(np.uint8)
        raw = raw.reshape(rows, -1)
        return {"blocks": raw}, gguf.dequantize(raw, kind).reshape(rows, columns)
    if name.startswith("int8"):
        group = {"int8": columns, "int8_g128": 128, "int8_g32": 32}[name]
        codes = rng.integers(-128, 128, (rows, columns), dtype=np.int8)
        scales = rng.uniform(0.001, 0.02, (rows, columns // group)).astype(ml_dtypes.bfloat16)
        return {"codes": codes, "scales": scales.view(np.uint16)}, codes * scales.astype(np.float32).repeat(group, 1)
    kind = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}[name]
    values = rng.normal(size=(rows, columns)).astype(kind)
    stored = values.view(np.uint16) if name == "bf16" else values
    return {"values": stored}, values.astype(np.float32)


def padded(x: np.ndarray) -> np.ndarray:
    """Rows padded with zeros to a multiple of 32 columns."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % 32)))


def records(team, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
    """Quantized rows as the kernels take them, and the float32 values that they stand for, by the reference."""
    x = padded(x)
    out = empty_records(*x.shape)
    team.call(
        quantize, x=x, x_stride=x.strides[0], records=out, record_stride=out.strides[0], rows=len(x), columns=x.shape[1]
    )
    codes, scales = quantize_rows(x)
    return out, codes * scales.repeat(32, 1)
