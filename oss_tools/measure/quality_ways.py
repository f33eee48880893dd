"""The ways of rounding that `quality` holds against each other: what is run to make a base's files in a format, and by whom."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from oss_tools.errors import MissingPackage, OssToolsError
from oss_tools.formats import get_format
from oss_tools.resources import resource

OURS = ("plain", "search", "importance", "gptq")
LLAMA_CPP = ("llama.cpp", "llama.cpp, importance")
TORCHAO = "torchao"

UNIFORM = ("mxfp4", "q4_0", "iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0", "nvfp4", "int8", "int8_g32", "int8_g128")
K_QUANTS = ("q3_k", "q4_k", "q5_k", "q6_k")
MIXTURES = ("q3_k_m", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m")
TORCHAO_HAS = ("mxfp4", "nvfp4", "int8")
PLAIN = {"mxfp4": "ocp"}  # what the formats call the rule without a search; the others: plain
FTYPES = {
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q3_k": 11,
    "q3_k_m": 12,
    "q4_k": 14,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k": 16,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "mxfp4": 38,
}  # llama_ftype
GGML_Q8_0 = 8
RECIPE = """description: every matrix but the router in {format}, embedding and output in Q8_0
rules:
  - role: router
    format: keep
  - role: embedding
    format: {ends}
  - role: output
    format: {ends}
  - role: "*"
    format: {format}
"""


class WayFailed(OssToolsError):
    """A program could not make a file of this kind; the message says why."""


@dataclass(frozen=True)
class Row:
    """A format, or a mixture's name, and a way to round to it."""

    format: str
    way: str

    @property
    def name(self) -> str:
        return f"{self.format}/{self.way}"

    @property
    def wants_importance(self) -> bool:
        return "importance" in self.way


def rows() -> list[Row]:
    """All, those first by which the ways are judged."""
    found = [Row(format, way) for format in ("mxfp4", "q4_0", "iq4_nl") for way in (*OURS, *LLAMA_CPP)]
    found += [Row(format, way) for format in ("q4_1", "q5_0") for way in ("plain", "importance", "gptq", *LLAMA_CPP)]
    found += [Row(name, way) for name in MIXTURES for way in (*LLAMA_CPP, "search", "importance", "gptq")]
    found += [Row(format, way) for format in ("q5_1", "q8_0", *K_QUANTS) for way in (*OURS, *LLAMA_CPP)]
    found += [Row(format, way) for format in ("nvfp4", "int8", "int8_g32", "int8_g128") for way in OURS]
    found += [Row(format, TORCHAO) for format in TORCHAO_HAS]
    return list(dict.fromkeys([*found, *(Row(format, "search") for format in ("q4_1", "q5_0"))]))


# ---- ours -----------------------------------------------------------------------------------------------------------


def make_ours(row: Row, base: Path, folder: Path, importance: Path | None, tokens: int) -> Path:
    """What `oss-tools requantize` makes; tokens: that GPTQ reads. Raises WayFailed."""
    command = [sys.executable, "-P", "-m", "oss_tools", "requantize", str(base)]
    recipe = folder / f"recipe-{row.format}.yaml"
    if row.format in MIXTURES:
        made = folder / f"{row.format}.gguf"
        rules = [{"role": role, "format": "q8_0"} for role in ("embedding", "output")]
        mixture = yaml.safe_load(resource(f"configs/recipes/{row.format}.yaml").read_text())
        recipe.write_text(yaml.safe_dump(mixture | {"rules": rules + mixture["rules"]}))
    else:
        in_gguf = get_format(row.format).ggml_type is not None
        made = folder / (f"{row.format}.gguf" if in_gguf else row.format)
        recipe.write_text(RECIPE.format(format=row.format, ends="q8_0" if in_gguf else "keep"))
    command += [str(made), "--recipe", str(recipe), "--overwrite", "--quiet"]
    command += ["--rule", PLAIN.get(row.format, "plain")] if row.way == "plain" else []
    command += ["--method", "gptq", "--tokens", str(tokens)] if row.way == "gptq" else []
    command += ["--importance", str(importance)] if row.way == "importance" else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise WayFailed(
            done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else f"exit status {done.returncode}"
        )
    return made


# ---- llama.cpp ------------------------------------------------------------------------------------------------------


def make_llama_cpp(row: Row, gguf: Path, folder: Path, importance: Mapping[str, np.ndarray] | None) -> Path:
    """What llama.cpp's quantize makes of a GGUF file in bfloat16; embedding and output in Q8_0.

    A format's own name means all matrices (`--pure`), a mixture's llama.cpp's mixture. Raises WayFailed, MissingPackage.
    """
    try:
        import llama_cpp
    except ImportError:
        raise MissingPackage("llama.cpp is not here: pip install llama-cpp-python") from None
    if row.format not in FTYPES:
        raise WayFailed(f"llama.cpp has no {row.format}")
    silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    made = folder / f"{row.format}-llama.cpp.gguf"
    made.unlink(missing_ok=True)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = 1, FTYPES[row.format], row.format not in MIXTURES
    params.token_embedding_type = params.output_tensor_type = GGML_Q8_0
    if importance:
        arrays = {name: np.ascontiguousarray(values, np.float32).reshape(-1) for name, values in importance.items()}
        kind = llama_cpp.llama_model_imatrix_data
        entries = (kind * (len(arrays) + 1))()
        for entry, (name, values) in zip(entries, arrays.items(), strict=False):
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(str(gguf).encode(), str(made).encode(), ctypes.byref(params)):
        made.unlink(missing_ok=True)
        raise WayFailed(f"llama.cpp refuses {row.format} for this model")
    return made


# ---- torchao --------------------------------------------------------------------------------------------------------


def torchao_rounding(format: str) -> Callable[[np.ndarray], np.ndarray]:
    """Rounds a matrix, float32 [out, in], to a format as torchao does, and back. Raises MissingPackage, WayFailed."""
    try:
        import torch
        from torchao.prototype.mx_formats.mx_tensor import MXTensor
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
        from torchao.quantization.quant_primitives import (
            MappingType,
            choose_qparams_affine,
            dequantize_affine,
            quantize_affine,
        )
    except ImportError:
        raise MissingPackage("torchao is not here: pip install torchao") from None

    def rounded(values: np.ndarray) -> np.ndarray:
        w = torch.from_numpy(np.array(values)).to(torch.bfloat16 if "fp4" in format else torch.float32)
        if format == "mxfp4":
            return MXTensor.to_mx(w, torch.float4_e2m1fn_x2, 32).dequantize(torch.float32).numpy()
        if format == "nvfp4":
            scale = per_tensor_amax_to_scale(w.abs().max())
            return NVFP4Tensor.to_nvfp4(w, per_tensor_scale=scale).dequantize(torch.float32).numpy()
        block = (1, w.shape[1])
        scale, zero = choose_qparams_affine(w, MappingType.SYMMETRIC, block, torch.int8, eps=torch.finfo(torch.float32).eps)
        codes = quantize_affine(w, block, scale, zero, torch.int8)
        return dequantize_affine(codes, block, scale, zero, torch.int8, output_dtype=torch.float32).numpy()

    if format not in TORCHAO_HAS:
        raise WayFailed(f"torchao has no {format}")
    return rounded
