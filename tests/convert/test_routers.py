"""Synthetic routers: how often each expert is chosen, and that nothing but the router differs."""

from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.drawing import draw
from oss_tools.convert.recipe import recipe_of_format
from oss_tools.convert.routers import EXPONENT, row_scales, shares
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.errors import BadRecipe
from oss_tools.models import open_checkpoint
from oss_tools.verify import verify

TOKENS = 20_000


def chosen_shares(router: np.ndarray, chosen: int) -> np.ndarray:
    """Share of random tokens for which each expert is among the chosen ones, the largest first."""
    hidden = np.random.default_rng(1).standard_normal((TOKENS, router.shape[1])).astype(np.float32)
    hidden /= np.sqrt(np.mean(hidden**2, axis=1, keepdims=True))  # as they come from a norm
    best = np.argsort(-(hidden @ router.T), axis=1)[:, :chosen]
    return np.sort(np.bincount(best.ravel(), minlength=len(router)) / TOKENS)[::-1]


@pytest.mark.parametrize(("experts", "chosen"), [(32, 4), (128, 4), (128, 8), (64, 6), (8, 2)])
def test_experts_are_chosen_as_often_as_zipfs_law_says(experts: int, chosen: int) -> None:
    scales = row_scales(experts, chosen, "layer", 0)
    rows = np.random.default_rng(0).standard_normal((experts, 256)).astype(np.float32) / 16
    even, skewed = chosen_shares(rows, chosen), chosen_shares(rows * scales[:, None], chosen)
    assert even[0] < 1.6 * chosen / experts
    expected = shares(experts, chosen)
    assert np.abs(skewed - expected).max() < 0.05
    popular = experts // 8 or 1
    assert skewed[:popular].sum() == pytest.approx(expected[:popular].sum(), rel=0.12)


def test_shares_follow_the_power_law_where_they_can() -> None:
    found = shares(128, 4)
    assert found.sum() == pytest.approx(4)
    assert found[0] / found[9] == pytest.approx(10**EXPONENT)
    assert shares(8, 2).sum() == pytest.approx(2)
    assert shares(8, 2).max() < 0.5
    assert shares(2, 1).sum() < 1  # two experts, one of them chosen: neither may be more than half


def test_the_ranking_is_another_in_each_layer_and_the_same_each_time() -> None:
    first = row_scales(32, 4, "model.layers.0.mlp.router.weight", 0)
    assert np.array_equal(first, row_scales(32, 4, "model.layers.0.mlp.router.weight", 0))
    assert not np.array_equal(first, row_scales(32, 4, "model.layers.1.mlp.router.weight", 0))
    assert not np.array_equal(first, row_scales(32, 4, "model.layers.0.mlp.router.weight", 1))
    assert np.array_equal(np.sort(first), np.sort(row_scales(32, 4, "model.layers.1.mlp.router.weight", 0)))
    assert first.argmax() == 2  # as on any machine


@pytest.mark.parametrize("shape", ["gpt-oss-small", "deepseek-v2-tiny", "qwen3-moe-tiny", "deepseek-v3-tiny"])
def test_only_routers_differ(shape: str) -> None:
    plans = {router: plan_synthesis(load_shape(shape), "hf", router=router) for router in ("even", "skewed")}
    differ = set()
    for even, skewed in zip(plans["even"].entries, plans["skewed"].entries, strict=True):
        if even.spec.size > 1 << 20 and even.spec.role != "router":
            continue
        rows = even.spec.matrices[1]
        a, b = (draw(e, plans[r].architecture, 0, 0, 0, rows, r) for e, r in ((even, "even"), (skewed, "skewed")))
        if any(not np.array_equal(a.planes[name], b.planes[name]) for name in a.planes):
            differ.add((even.spec.role, even.spec.is_vector))
    assert differ == {("router", False)}


@pytest.mark.parametrize("format", ["bf16", "f32", "int8"])
def test_rows_do_not_depend_on_how_many_are_drawn_at_a_time(format: str) -> None:
    plan = plan_synthesis(load_shape("qwen3-moe-tiny"), "hf", recipe_of_format(format), router="skewed")
    entry = next(e for e in plan.entries if e.spec.role == "router")
    rows = entry.spec.matrices[1]
    whole = draw(entry, plan.architecture, 3, 0, 0, rows, "skewed")
    parts = [draw(entry, plan.architecture, 3, 0, start, min(start + 3, rows), "skewed") for start in range(0, rows, 3)]
    for name, plane in whole.planes.items():
        assert np.array_equal(plane, np.concatenate([part.planes[name] for part in parts]))


def test_every_container_gets_the_same_router(tmp_path: Path) -> None:
    made = {}
    for container, name in (("hf", "folder"), ("gguf", "file.gguf"), ("ready", "file.ready")):
        plan = plan_synthesis(load_shape("qwen3-moe-tiny"), container, recipe_of_format("f32"), seed=2, router="skewed")
        made[container] = synthesize(plan, tmp_path / name)
    for container in ("gguf", "ready"):
        with open_checkpoint(made["hf"]) as a, open_checkpoint(made[container]) as b:
            assert not verify(a, b).differences


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadRecipe, match="no experts"):
        plan_synthesis(load_shape("llama-tiny"), "hf", router="skewed")
    with pytest.raises(BadRecipe, match="even, skewed"):
        plan_synthesis(load_shape("qwen3-moe-tiny"), "hf", router="steep")
    with pytest.raises(BadRecipe, match="2 of 4 experts"):
        plan_synthesis(load_shape("gpt-oss-tiny"), "hf", router="skewed")
