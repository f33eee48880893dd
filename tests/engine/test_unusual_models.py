"""What published models of these families do not do, and others may: layers with and without a window in any order, windows of
several sizes, biases on some projections only, a rotary embedding that scales. The kernels against the torch backend."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import CONTEXT, YARN, checkpoint, gpt_osses, llamas
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oss_tools.engine.engine import Engine
from oss_tools.models.gpt_oss import GptOss
from oss_tools.models.llama import Llama
from oss_tools.models.operations import Heads, Rope

pytest.importorskip("torch")
FEW = settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])


def logits(path: Path, tokens: list[int], **options: Any) -> np.ndarray:
    """After every token: in one pass but for the last three, which are steps."""
    with Engine.load(path, context=CONTEXT, **options) as engine:
        whole = engine.logits(tokens[:-3])
        sequence = engine.open(tokens, reuse=0)
        engine.prefill(sequence, tokens[:-3])
        return np.concatenate([whole, [engine.step([sequence], [t])[0].copy() for t in tokens[-3:]]])


def assert_backends_agree(config: dict[str, Any], length: int = 200, **options: Any) -> None:
    tokens = np.random.default_rng(length).integers(0, config["vocab_size"], length).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(config, Path(folder) / "model")
        wanted = logits(path, tokens, backend="torch")
        found = logits(path, tokens, activations="f32", **options)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def with_windows(monkeypatch: pytest.MonkeyPatch, windows: list[int | None]) -> None:
    """Has layer after layer the windows of the list."""
    before = GptOss.attention_layers

    def attention_layers(self: GptOss) -> list[Heads]:
        return [replace(heads, window=windows[heads.layer % len(windows)]) for heads in before(self)]

    monkeypatch.setattr(GptOss, "attention_layers", attention_layers)


def without_biases(monkeypatch: pytest.MonkeyPatch, missing: set[str]) -> None:
    """Has no biases of the named projections."""
    for kind in (Llama, GptOss):
        before = kind.tensors
        monkeypatch.setattr(
            kind,
            "tensors",
            lambda self, before=before: [
                spec
                for spec in before(self)
                if spec.role != "bias" or not missing & {spec.name.removesuffix("bias").rstrip("._").split(".")[-1]}
            ],
        )


WINDOWS = st.lists(st.sampled_from([None, 1, 7, 64, 100]), min_size=1, max_size=4)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "router", "gate_up_proj"]


@FEW
@given(config=gpt_osses(), windows=WINDOWS)
def test_windows_in_any_order(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], windows: list[int | None]) -> None:
    with monkeypatch.context() as patch:
        with_windows(patch, windows)
        assert_backends_agree(config | {"num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 4}, 170)


@FEW
@given(config=st.one_of(llamas(), gpt_osses()), missing=st.sets(st.sampled_from(PROJECTIONS)))
def test_biases_on_some_projections(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], missing: set[str]) -> None:
    with monkeypatch.context() as patch:
        without_biases(patch, missing)
        assert_backends_agree(config | {"attention_bias": True, "mlp_bias": True}, 40)


@pytest.mark.slow
@FEW
@given(config=llamas(), scale=st.floats(0.5, 2))
def test_a_rope_that_scales(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], scale: float) -> None:
    plain = Llama.rope
    with monkeypatch.context() as patch:
        patch.setattr(Llama, "rope", lambda self: Rope(plain(self).frequencies, scale))
        assert_backends_agree(config, 40)


@pytest.mark.slow
def test_all_of_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba_cuda")
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "numba_kernels" / "cuda"))
    from emulated_device import EmulatedDevice

    from oss_tools.engine import cuda_backend, cuda_sampling

    monkeypatch.setattr(cuda_backend, "open_device", EmulatedDevice)
    monkeypatch.setattr(cuda_sampling, "CHOOSERS", 2)
    with_windows(monkeypatch, [None, 3, 2])
    without_biases(monkeypatch, {"k_proj", "o_proj", "gate_up_proj", "router"})
    config = {
        "model_type": "gpt_oss", "num_hidden_layers": 3, "hidden_size": 40, "intermediate_size": 24, "vocab_size": 60,
        "num_local_experts": 3, "num_experts_per_tok": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 48,
        "sliding_window": 3, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "rope_scaling": YARN, "max_position_embeddings": 512,
    }  # fmt: skip
    assert_backends_agree(config, 9, backend="cuda")
