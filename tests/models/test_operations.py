"""What operations' descriptions refuse, and what they say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from oss_tools.errors import BadCheckpoint
from oss_tools.models.operations import Heads, Latent, Router


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"experts": 4, "chosen": 5}, "5 of 4 experts"),
        ({"experts": 4, "chosen": 0}, "0 of 4 experts"),
        ({"experts": 10, "chosen": 2, "groups": 4}, "10 experts do not divide into 4 groups"),
        ({"experts": 8, "chosen": 2, "groups": 4, "groups_chosen": 5}, "4 groups of which 5 are chosen"),
        ({"experts": 8, "chosen": 5, "groups": 4, "groups_chosen": 2}, "2 groups of 2 experts do not have 5 to choose"),
        ({"experts": 4, "chosen": 1, "groups": 4, "groups_chosen": 2}, "groups of one expert have no two best ones"),
    ],
)
def test_impossible_routers_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        Router(**how)


def test_the_softmax_of_the_chosen_is_told_from_other_routers() -> None:
    assert Router(8, 2, epsilon=0.0).is_softmax_of_chosen
    for how in ({"score": "sigmoid"}, {"renormalized": False}, {"scale": 2.5}, {"correction": "c"}, {"groups": 2}):
        assert not Router(8, 2, **how).is_softmax_of_chosen  # type: ignore[arg-type]


def test_values_of_a_position_and_factors_of_logits() -> None:
    assert Heads(0, 32, 8, 128).cached == 2 * 8 * 128
    assert Heads(0, 32, 8, 64).factor == 0.125
    latent = Latent(0, 128, 128, 64, 128, 512)
    assert latent.cached == 576
    assert latent.factor == pytest.approx(192**-0.5)
    assert Latent(0, 128, 128, 64, 128, 512, scale=0.135234).factor == 0.135234
