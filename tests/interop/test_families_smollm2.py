"""A trained model said as another family without loss, SmolLM2 as Mistral, Qwen 2 and Mixtral, gives the same logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.checkpoints import writer_for
from oss_tools.engine.engine import Engine
from oss_tools.engine.sampling import log_softmax
from oss_tools.formats import QTensor, get_format
from oss_tools.models import Checkpoint, TensorSpec, architecture_of, open_checkpoint
from oss_tools.models.base import Architecture
from oss_tools.models.checkpoint import Entry, chunks, stored_tensors, write_rows
from tests.interop.peers import smollm2

pytestmark = [pytest.mark.peers, pytest.mark.slow]

TEXT = (
    "The tide had gone out and left the harbour floor bare. Children walked between the boats that leaned on their sides, "
    "looking for what the water had forgotten: rope, a shoe, a bottle with the label still on. An old man watched them from "
    "the wall and told anyone who stopped how many ships used to lie here, and what they carried, and where they went."
)
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
}


def source_of(spec: TensorSpec, checkpoint: Checkpoint) -> str | None:
    """The Llama's tensor that this one repeats; None where there is none."""
    name = spec.name.replace(".mlp.experts.", ".mlp.")
    name = name if name.endswith((".weight", ".bias")) else f"{name}.weight"
    return name if name in checkpoint.entries else None


def said_as(model_type: str, source: Checkpoint, folder: Path) -> Path:
    """The same weights as a GGUF file of another family: biases of zero, all experts the same, a router of zeros."""
    config = {k: v for k, v in source.architecture.hf_config().items() if k not in ("attention_bias", "mlp_bias")}
    model: Architecture = architecture_of(model_type).from_config(
        "hf", config | {"model_type": model_type} | OTHERS[model_type]
    )
    metadata = source.metadata()
    metadata.config = model.hf_config()
    entries = []
    for spec in model.tensors():
        name = source_of(spec, source)
        if name is None and spec.optional:
            continue
        form = source.entries[name].format if name else get_format("f32")
        entries.append(Entry(spec, form, tuple(model.placements("gguf", spec, form.is_float))))
    writer = writer_for("gguf")(folder, model_type, stored_tensors(entries), metadata, model.container_config("gguf"))
    for entry in entries:
        for matrix, start, stop, rows in pieces(entry, source):
            write_rows(writer, entry, matrix, start, rows)
            assert stop > start
    (path,) = writer.finish()
    writer.close()
    return path


def pieces(entry: Entry, source: Checkpoint) -> Iterator[tuple[int, int, int, QTensor]]:
    name = source_of(entry.spec, source)
    places = [entry] if name is None else [entry, source.entries[name]]
    for matrix, start, stop in chunks([places[0]]):
        if name is None:
            rows = entry.format.quantize(np.zeros((stop - start, entry.spec.matrices[2]), np.float32))
        else:
            rows = source.read(name, 0, start, stop)
        yield matrix, start, stop, rows


def test_the_same_weights_give_the_same_logits(tmp_path: Path) -> None:
    with Engine.load(smollm2(), backend="numba", activations="f32", context=256) as engine:
        tokens = engine.text.encode(TEXT)
        expected = log_softmax(engine.logits(tokens))
    with open_checkpoint(smollm2()) as source:
        files = {model_type: said_as(model_type, source, tmp_path) for model_type in OTHERS}
    for model_type, path in files.items():
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.architecture.model_type == model_type
        with Engine.load(path, backend="numba", activations="f32", context=256) as engine:
            found = log_softmax(engine.logits(tokens))
        assert np.abs(found - expected).max() < 1e-3, model_type
        path.unlink()
