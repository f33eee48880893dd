"""The engine's distributions against llama.cpp's on the same GGUF bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.engine import Engine
from oss_tools.models import open_checkpoint
from tests.interop.peers import llama_cpp_logits, mean_kld, smollm2

pytestmark = [pytest.mark.peers, pytest.mark.slow]
TEXT = (
    "The tide had gone out and left the harbour floor bare. Children walked between the boats that leaned on their sides, "
    "looking for what the water had forgotten: rope, a shoe, a bottle with the label still on. An old man watched them from "
    "the wall and told anyone who stopped how many ships used to lie here, and what they carried, and where they went."
)


@pytest.fixture(scope="module", params=["q8_0", "mxfp4", "gpt-oss"])
def gguf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in Q8_0 and in MXFP4, and random weights in the shape of a small gpt-oss."""
    folder = tmp_path_factory.mktemp("gguf")
    if request.param == "gpt-oss":
        return synthesize(
            plan_synthesis(load_shape("gpt-oss-small"), "gguf", load_recipe("mxfp4-q8")), folder / "small.gguf"
        )
    with open_checkpoint(smollm2()) as source:
        run(make_plan(source, "gguf", load_recipe(request.param)), folder / "smollm2.gguf", Options(verify=False))
    return folder / "smollm2.gguf"


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_mean_kld_to_llama_cpp(gguf: Path, activations: str) -> None:
    with Engine.load(gguf, activations=activations, context=512) as engine:
        tokens = engine.text.encode(TEXT)
        ours = engine.logits(tokens)
    assert mean_kld(llama_cpp_logits(gguf, tokens), ours) < 5e-3
