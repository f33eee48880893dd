"""What GPTQ wrote is read by transformers and llama.cpp as any file of its format: their logits are ours."""

from pathlib import Path

import numpy as np
import pytest

from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.calibration.compensation import Compensation
from oss_tools.calibration.texts import Sample
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource
from tests.interop.peers import llama_cpp_logits, mean_kld, transformers_logits

pytestmark = pytest.mark.peers

TOKENS = [3, 17, 101, 40, 222, 9, 9, 63, 30, 5, 12, 48]


def made(destination: Path, container: str, recipe: str) -> np.ndarray:
    """The embedded model by GPTQ; the logits of `TOKENS` by our own pass over what was written."""
    rng = np.random.default_rng(0)
    sample = Sample([rng.integers(0, 1000, 64) for _ in range(4)], 64, ("drawn",), {"drawn": 256}, 0)
    with open_checkpoint(resource("oss_tools/tiny/checkpoint")) as checkpoint:
        manifest = run(
            make_plan(checkpoint, container, load_recipe(recipe)),
            destination,
            Options(jobs=2, rounding=Compensation(sample)),
        )
    assert any(record.output for record in manifest.tensors)
    with open_checkpoint(destination) as written, BreadthFirst(written, [np.array(TOKENS)]) as ops:
        return ops.logits(ops.forward())


def test_transformers_reads_mxfp4(tmp_path: Path) -> None:
    ours = made(tmp_path / "model", "hf", "mxfp4")
    assert mean_kld(transformers_logits(tmp_path / "model", TOKENS), ours) < 1e-3


@pytest.mark.parametrize("recipe", ["q4_0", "iq4_nl", "mxfp4"])
def test_llama_cpp_reads(recipe: str, tmp_path: Path) -> None:
    ours = made(tmp_path / "model.gguf", "gguf", recipe)
    assert mean_kld(llama_cpp_logits(tmp_path / "model.gguf", TOKENS), ours) < 1e-2
