"""Small checkpoints of every kind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from oss_tools.convert.recipe import load_recipe, recipe_of_format
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """synthetic(shape, recipe or format, container) -> the path of a checkpoint, made once."""
    made: dict[tuple[str, str, str], Path] = {}

    def make(shape: str, recipe: str = "bf16", container: str = "hf") -> Path:
        key = (shape, recipe, container)
        if key not in made:
            suffix = ".gguf" if container == "gguf" else ""
            path = tmp_path_factory.mktemp("synthetic") / f"{shape}-{recipe}{suffix}"
            chosen = load_recipe(recipe) if recipe in ("mxfp4",) else recipe_of_format(recipe)
            made[key] = synthesize(plan_synthesis(load_shape(shape), container, chosen, seed=7), path)
        return made[key]

    return make
