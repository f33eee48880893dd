"""Small checkpoints of random weights that many tests share."""

from pathlib import Path

import pytest

from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize


@pytest.fixture(scope="session")
def tiny_gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: gpt-oss-tiny, experts in MXFP4, the rest in BF16. Not to be changed."""
    return synthesize(plan_synthesis(load_shape("gpt-oss-tiny"), "hf"), tmp_path_factory.mktemp("tiny") / "gpt-oss-tiny")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: llama-tiny in BF16. Not to be changed."""
    return synthesize(plan_synthesis(load_shape("llama-tiny"), "hf"), tmp_path_factory.mktemp("tiny") / "llama-tiny")
