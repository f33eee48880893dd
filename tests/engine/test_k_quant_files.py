"""Models of k-quants: from their panels in a run-ready file they say the same as from GGUF, and experts may be streamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.options import Options
from oss_tools.convert.pipeline import run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL, load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine import backend
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.engine.stream.plan import plan_streaming
from oss_tools.models import open_checkpoint

TOKENS = np.random.default_rng(0).integers(3, 250, 40).tolist()
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in q3_k, q4_k, q5_k and q6_k."""
    shape = load_shape("mixtral-tiny")
    shape = replace(shape, config=shape.config | WIDE)
    path = tmp_path_factory.mktemp("k") / "k.gguf"
    return synthesize(plan_synthesis(shape, "gguf", load_recipe("q3_k_m")), path)


@pytest.mark.slow
def test_a_run_ready_file_has_their_panels(mixture: Path, tmp_path: Path) -> None:
    ready, again = tmp_path / "k.ready", tmp_path / "again.gguf"
    with open_checkpoint(mixture) as checkpoint:
        run(make_plan(checkpoint, "ready", KEEP_ALL), ready, Options())
        stored = {e.name: (e.format.name, checkpoint.read_tensor(e.name).planes) for e in checkpoint.entries.values()}
    with open_checkpoint(ready) as checkpoint:
        run(make_plan(checkpoint, "gguf", KEEP_ALL), again, Options())
        assert {format for format, _ in stored.values()} >= {"q3_k", "q4_k", "q5_k", "q6_k"}
        for name, (_, planes) in ((n, s) for n, s in stored.items() if s[0].startswith("q")):
            assert checkpoint.is_in_panels(name), name
            for plane, data in planes.items():
                np.testing.assert_array_equal(checkpoint.read_tensor(name).planes[plane].reshape(data.shape), data)
    with Engine.load(mixture) as first, Engine.load(ready) as second, Engine.load(again) as third:
        expected = first.logits(TOKENS)
        np.testing.assert_array_equal(second.logits(TOKENS), expected)
        np.testing.assert_array_equal(third.logits(TOKENS), expected)
        assert {"q3_k", "q4_k"} <= set(second.backend.facts()["weight_bytes"])


def test_experts_in_k_quants_stream(mixture: Path) -> None:
    context = 256
    with open_checkpoint(mixture) as checkpoint:
        kept = NumbaBackend.context_bytes(checkpoint.architecture, backend.Options(context=context))
        plan = plan_streaming(checkpoint, 1 << 40, kept, 0)
    with (
        Engine.load(mixture, context=context) as whole,
        Engine.load(mixture, context=context, memory=plan.least + 2 * plan.slot_bytes, prefix_budget=0) as streamed,
    ):
        assert isinstance(streamed.backend, NumbaBackend)
        assert streamed.backend.streamed is not None
        np.testing.assert_array_equal(streamed.logits(TOKENS), whole.logits(TOKENS))
