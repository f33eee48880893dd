"""The rules by which the study of rounded caches rounds keys and values."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")
from oss_tools.compare.rounded_cache import OUTLIER, rules, to_bytes, with_outlier

RNG = np.random.default_rng(5)


def test_bytes_are_within_half_a_step_of_their_group():
    x = RNG.normal(size=(7, 3, 64)).astype(np.float32)
    for group in (0, 32):
        blocks = x.reshape(7, 3, -1, group or 64)
        step = np.abs(blocks).max(-1, keepdims=True) / 127
        error = np.abs(to_bytes(x, group).reshape(blocks.shape) - blocks)
        assert (error <= step * 0.5001).all()
        assert error.max() > 0
    assert not to_bytes(np.zeros((1, 1, 64), np.float32)).any()


def test_only_what_a_rule_names_is_rounded():
    k, v = (RNG.normal(size=(5, 2, 64)).astype(np.float32) for _ in range(2))
    found = {name: rule(k, v) for name, rule in rules().items()}
    keys, values = found["q8 keys, exact values"], found["exact keys, q8 values"]
    assert (keys[1] == v).all()
    assert (values[0] == k).all()
    assert (found["q8"][0] == keys[0]).all()
    assert (found["q8"][1] == values[1]).all()


def test_the_transform_halves_at_least_what_an_outlier_costs():
    x = RNG.normal(size=(50, 2, 64)).astype(np.float32)
    plain = with_outlier(to_bytes, x) - x
    mixed = rules()[f"q8, two key channels × {OUTLIER}"](x, x)[0] - x
    others = np.ones(64, bool)
    others[[16, 48]] = False
    assert np.square(mixed[..., others]).mean() < np.square(plain[..., others]).mean() / 2
