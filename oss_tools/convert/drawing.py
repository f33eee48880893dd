"""Values of synthetic checkpoints: random, each fixed by the seed, its tensor's name and its place alone."""

from __future__ import annotations

import hashlib

import numpy as np

from oss_tools.convert.routers import row_scales
from oss_tools.formats import Format, QTensor
from oss_tools.models import Architecture, TensorSpec
from oss_tools.models.entries import Entry

MXFP4_DEVIATION = 68.5**0.5 / 8**0.5  # root mean square of the 16 codes' values, equally likely
RESIDUAL_WRITERS = ("attention.out", "experts.down", "mlp.down")


def draw(
    entry: Entry, architecture: Architecture, seed: int, matrix: int, start: int, stop: int, router: str = "even"
) -> QTensor:
    """Rows [start, stop) of one matrix of a tensor: random, in the tensor's format, [stop - start, columns]."""
    from numba_kernels.codec import synthetic

    _, rows, columns = entry.spec.matrices
    mean, deviation = distribution(entry.spec, architecture)
    first, count = (matrix * rows + start) * columns, (stop - start) * columns
    format, shape = entry.format, (stop - start, columns)
    if router == "skewed" and is_router(entry.spec):
        chosen = int(architecture.computation()["num_experts_per_tok"])
        scales = row_scales(rows, chosen, entry.name, seed)
        return _draw_rows(format, seed, entry.name, first, shape, deviation, scales[start:stop])
    if format.name == "mxfp4":
        return _draw_mxfp4(entry, seed, first, shape, deviation)
    key = stream_key(seed, entry.name, "values")
    if format.name == "bf16":
        bits = np.empty(count, np.uint16)
        synthetic.bell_bf16(bits, key, first, mean, deviation)
        return QTensor(format, shape, {"values": bits.reshape(shape)})
    values = np.empty(count, np.float32)
    synthetic.bell_f32(values, key, first, mean, deviation)
    amax = abs(mean) + deviation * synthetic.BELL_LIMIT if format.needs_amax else None
    rule = "plain" if "plain" in format.rules else None  # nothing is lost that anyone wanted
    return format.quantize(values.reshape(shape), rule=rule, amax=amax)


def _draw_rows(
    format: Format, seed: int, name: str, first: int, shape: tuple[int, int], deviation: float, scales: np.ndarray
) -> QTensor:
    """Rows of mean 0 whose deviation is scaled row by row."""
    from numba_kernels.codec import synthetic

    values = np.empty(shape, np.float32)
    synthetic.bell_f32(values.reshape(-1), stream_key(seed, name, "values"), first, 0.0, deviation)
    values *= scales[:, None]
    amax = float(scales.max()) * deviation * synthetic.BELL_LIMIT if format.needs_amax else None
    return format.quantize(values, rule="plain" if "plain" in format.rules else None, amax=amax)


def is_router(spec: TensorSpec) -> bool:
    return spec.role == "router" and not spec.is_vector


def _draw_mxfp4(entry: Entry, seed: int, first: int, shape: tuple[int, int], deviation: float) -> QTensor:
    """Random codes; each block's scale is one of the two powers of two around the one that gives the deviation."""
    from numba_kernels.codec import synthetic

    planes = entry.format.planes(shape[1])
    blocks = np.empty((shape[0], planes["blocks"].columns), np.uint8)
    scales = np.empty((shape[0], planes["scales"].columns), np.uint8)
    synthetic.random_words(blocks.reshape(-1).view(np.uint64), stream_key(seed, entry.name, "blocks"), first // 16)
    low = int(np.floor(np.log2(deviation / MXFP4_DEVIATION)))
    share = ((deviation / MXFP4_DEVIATION / 2.0**low) ** 2 - 1) / 3  # of blocks with the upper scale
    key = stream_key(seed, entry.name, "scales")
    synthetic.random_steps(scales.reshape(-1), key, first // 32, low + 127, round(256 * share))
    return QTensor(entry.format, shape, {"blocks": blocks, "scales": scales})


def distribution(spec: TensorSpec, architecture: Architecture) -> tuple[float, float]:
    """(mean, standard deviation) of a tensor's values."""
    if spec.role == "norm":
        return 1.0, 0.1
    if spec.is_vector:
        return 0.0, 1.0 if spec.role == "sinks" else 0.02
    inputs = spec.matrices[2]
    if spec.role == "embedding":
        return 0.0, inputs**-0.5 if architecture.computation()["tie_word_embeddings"] else 1.0
    if spec.role == "positions":
        return 0.0, 0.1 * inputs**-0.5
    if spec.role in RESIDUAL_WRITERS:
        return 0.0, (inputs * 2 * len(architecture.attention_layers())) ** -0.5
    return 0.0, inputs**-0.5


def stream_key(seed: int, tensor: str, plane: str) -> np.uint64:
    """The key of one plane's random stream."""
    digest = hashlib.sha256(f"{seed}/{tensor}/{plane}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))
