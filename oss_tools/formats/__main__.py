"""`python -m oss_tools.formats [GGUF]`: every format, its size, and its error by each rule on Gaussian values.

If a GGUF file is named, also the error on its layers' matrices.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from oss_tools.formats import Format, all_formats

COLUMNS = 2816  # a multiple of every block
ROWS = 1024


def main(arguments: list[str]) -> None:
    gaussian = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    weights = list(_weights(arguments[0])) if arguments else []
    print("format       rule    bits    Gaussian: SQNR dB  rel. error" + "   model: SQNR dB  rel. error" * bool(weights))
    for format in all_formats().values():
        if not format.rules:
            print(f"{format.name:12} (read)  {8 * format.bytes_per_row(256) / 256:<7.4g} {format.summary}")
        for rule in format.rules:
            figures = "".join(_figures(format, rule, tensors) for tensors in ([gaussian], weights) if tensors)
            print(f"{format.name:12} {rule:7} {format.bits_per_weight(COLUMNS):<7.5g} {figures}")


def _figures(format: Format, rule: str, tensors: list[np.ndarray]) -> str:
    from numba_kernels.codec.error import error_sums

    fitting = [t for t in tensors if format.fits(t.shape[-1])]
    if not fitting:
        return f"{'—':>18}{'—':>12}"
    sums = [error_sums(t, format.quantize(t, rule=rule).dequantize())[:2] for t in fitting]
    error, norm = (sum(column) for column in zip(*sums, strict=True))
    relative = (error / norm) ** 0.5
    return f"{-20 * np.log10(relative) if relative else np.inf:18.2f}{relative:12.5f}"


def _weights(path: str) -> Iterator[np.ndarray]:
    """The matrices of a GGUF file's layers as float32 [rows, K], one after another."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for tensor in GGUFReader(path).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            yield dequantize(tensor.data, tensor.tensor_type)


if __name__ == "__main__":
    main(sys.argv[1:])
