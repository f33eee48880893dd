"""Small checkpoints of random weights that many tests share; what hypothesis does where `CI` is set."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize

# Where tests run in several processes, pytest-xdist calls the width of a screen 80; what is written here goes to no screen.
os.environ.pop("COLUMNS", None)

# One change is judged by the same examples as the next; new ones are looked for on developers' machines.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def tiny_gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: gpt-oss-tiny, experts in MXFP4, the rest in BF16. Not to be changed."""
    return synthesize(plan_synthesis(load_shape("gpt-oss-tiny"), "hf"), tmp_path_factory.mktemp("tiny") / "gpt-oss-tiny")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: llama-tiny in BF16. Not to be changed."""
    return synthesize(plan_synthesis(load_shape("llama-tiny"), "hf"), tmp_path_factory.mktemp("tiny") / "llama-tiny")
