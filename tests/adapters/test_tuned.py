"""A fine-tune of the embedded model, merged into it: it keeps of what it learned what the report says is left of the update."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oss_tools.cli._options import embedded_model
from oss_tools.convert.recipe import KEEP_ALL, Recipe, recipe_of_format
from oss_tools.convert.updates import Kept
from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampling
from tests.adapters.written import merge
from tests.convert.helpers import convert

pytest.importorskip("torch", reason="needs the extra `peers`")
pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.timeout(1200)]

from tests.adapters import tuned  # noqa: E402 - it needs torch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with every matrix in MXFP4."""
    folder = tmp_path_factory.mktemp("base") / "mxfp4"
    convert(embedded_model(), folder, "hf", recipe_of_format("mxfp4"))
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned.tune(base, tmp_path_factory.mktemp("adapter") / "rank8", steps=60)


def answers(model: Path) -> int:
    """How many of the invented questions the engine answers as it was taught, word by word."""
    right = 0
    with Engine.load(model, context=256) as engine:
        for ids, said in tuned.encoded(model):
            given = said.index(True)
            request = Request(ids[:given], len(ids) - given, Sampling(temperature=0.0), stop_tokens=frozenset())
            right += [token.id for token in engine.generate(request)] == ids[given:]
    return right


def test_the_loss_is_that_of_the_share_that_is_left(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Of several strengths and formats: a merge that keeps a share of the update is as good as the exact one of that strength."""
    untaught = tuned.loss(base)
    strengths = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
    exact = [untaught]
    for strength in strengths[1:]:
        merge(base, adapter, tmp_path / f"exact{strength}", recipe_of_format("f32"), scales=[strength])
        exact.append(tuned.loss(tmp_path / f"exact{strength}"))
    assert exact[-1] < 0.4 < 4 < untaught  # it learned
    cases: list[tuple[float, Recipe]] = [(s, KEEP_ALL) for s in (1.0, 0.5, 0.25, 0.1)]
    cases += [(s, recipe_of_format("int8_g32")) for s in (1.0, 0.1, 0.05)]
    shares, off = [], []
    for number, (strength, recipe) in enumerate(cases):
        manifest = merge(base, adapter, tmp_path / str(number), recipe, scales=[strength])
        share = Kept.total([t.kept for t in manifest.tensors if t.kept]).share
        assert share is not None
        shares.append(share)
        off.append(tuned.loss(tmp_path / str(number)) - float(np.interp(strength * share, strengths, exact)))
    assert min(shares) < 0.05
    assert max(shares) > 0.95
    print([(round(s, 3), round(o, 3)) for s, o in zip(shares, off, strict=True)])
    assert np.abs(off).max() < 0.15 * untaught, list(zip(shares, off, strict=True))


def test_merged_into_mxfp4_it_still_answers(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "mxfp4")
    merge(base, adapter, tmp_path / "faint", scales=[0.1])
    before, taught, faint = (answers(model) for model in (base, tmp_path / "mxfp4", tmp_path / "faint"))
    asked = len(tuned.facts())
    assert taught >= 0.75 * asked
    assert max(before, faint) <= asked // 4
