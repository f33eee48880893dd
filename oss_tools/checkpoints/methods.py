"""Whose quantization a Hugging Face folder has, by its configuration and by the names of its tensors; refused where it cannot
be read, in the words of the program that made it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from oss_tools.checkpoints.compressed_tensors import SCHEMES
from oss_tools.checkpoints.safetensors import RawTensor
from oss_tools.errors import BadCheckpoint

READABLE = ("dense", "naive-quantized", "mixed-precision", *dict.fromkeys(scheme for scheme, _ in SCHEMES.values()))
METHODS = ("mxfp4", "compressed-tensors", "oss-tools", "fp8")
ELSEWHERE = "take the unquantized checkpoint, or dequantize it with the program that made it"
MLX = (
    "quantized by MLX (mlx-lm), whose packed weights only MLX reads; take the checkpoint that it was made from, or undo it with "
    "`mlx_lm.convert --dequantize`"
)
BITSANDBYTES = "quantized by bitsandbytes; in transformers, `model.dequantize()` and `save_pretrained()` undo that"

# the end of a tensor's name, and the layout that it tells
TELLTALES = (
    (re.compile(r"\.(absmax|quant_map|nested_absmax|quant_state\..+|SCB)$"), BITSANDBYTES),
    (re.compile(r"\.(q_weight|q_scale|q_invperm|trellis)$"), f"quantized by ExLlama (EXL2 or EXL3); {ELSEWHERE}"),
    (re.compile(r"\.(qweight|qzeros)$"), f"quantized by GPTQ or AWQ; {ELSEWHERE}"),
    (re.compile(r"\.W_q$"), f"quantized by HQQ; {ELSEWHERE}"),
    (re.compile(r"\.(codebooks|codes)$"), f"quantized by AQLM; {ELSEWHERE}"),
    (re.compile(r"\.weight_scale_2$"), f"quantized by NVIDIA ModelOpt; {ELSEWHERE}"),
    (re.compile(r"\.attention\.w[qkvo]\.weight$"), "in Meta's or Mistral's own layout; take the one for transformers"),
)


def check_method(config: Mapping[str, Any], where: str) -> None:
    """Raises BadCheckpoint if the configuration names a method or variant of quantization that cannot be read."""
    for quantization in (config.get("quantization"), config.get("quantization_config")):  # the first is MLX's own
        if (
            isinstance(quantization, dict)
            and {"group_size", "bits"} <= set(quantization)
            and "quant_method" not in quantization
        ):
            raise BadCheckpoint(f"{where}: {MLX}")
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    if not isinstance(quantization, dict):
        raise BadCheckpoint(f"{where}: quantization_config is not an object")
    method = quantization.get("quant_method")
    if method not in METHODS:
        what_to_do = BITSANDBYTES.partition("; ")[2] if method == "bitsandbytes" else ELSEWHERE
        raise BadCheckpoint(
            f"{where}: quantization method {str(method)[:40]!r} is not supported; supported: {', '.join(METHODS)}; {what_to_do}"
        )
    if method == "fp8":
        _check_fp8(quantization, where)
    if method == "compressed-tensors":
        _check_compressed_tensors(quantization, where)


def _check_fp8(quantization: Mapping[str, Any], where: str) -> None:
    """FP8 as DeepSeek publishes it and transformers' finegrained_fp8 writes it."""
    for key, known in (("fmt", (None, "e4m3")), ("weight_block_size", (None, [128, 128]))):
        if quantization.get(key) not in known:
            raise BadCheckpoint(
                f"{where}: quantization_config.{key} is {str(quantization[key])[:40]}, which is not supported; only {known[1]} is"
            )


def check_names(raw: Mapping[str, RawTensor], where: str) -> None:
    """Raises BadCheckpoint if names and dtypes are those of a layout that cannot be read, whatever the configuration says."""
    for name, tensor in raw.items():
        for telltale, whose in TELLTALES:
            if telltale.search(name):
                raise BadCheckpoint(f"{where}: tensor {name} ({tensor.dtype}) tells that this is {whose}")
        if tensor.dtype == "U32" and name.endswith(".weight") and f"{name.removesuffix('.weight')}.scales" in raw:
            raise BadCheckpoint(f"{where}: tensor {name} (U32, with .scales) tells that this is {MLX}")


def _check_compressed_tensors(quantization: Mapping[str, Any], where: str) -> None:
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise BadCheckpoint(f"{where}: quantization_config.config_groups is not an object of objects")
    for scheme in (quantization.get("format"), *(group.get("format") for group in groups.values())):
        if scheme is not None and scheme not in READABLE:
            raise BadCheckpoint(
                f"{where}: compressed-tensors format {str(scheme)[:40]!r} is not supported; supported: {', '.join(READABLE)}"
            )
    for weights in (group.get("weights") for group in groups.values()):
        if not isinstance(weights, dict):
            continue
        if weights.get("symmetric") is False:
            raise BadCheckpoint(f"{where}: asymmetric quantization (compressed-tensors, symmetric: false) is not supported")
        if weights.get("strategy") == "block":
            raise BadCheckpoint(f"{where}: compressed-tensors strategy 'block' (fp8 blocks) is not supported")
    for key in ("sparsity_config", "transform_config"):
        if quantization.get(key) and not _is_dense(quantization[key]):
            raise BadCheckpoint(f"{where}: compressed-tensors {key} is not supported")


def _is_dense(sparsity: Any) -> bool:
    return isinstance(sparsity, dict) and sparsity.get("format") == "dense"
