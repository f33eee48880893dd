"""Weight errors: rounding is not suspicious, damage is, and the finding names the tensor."""

import pytest
from damage import change, shifted_scales, swapped_experts, swapped_gate_and_up

from oss_tools.compare.models import make, recipe_called
from oss_tools.compare.weights import compare_weights
from oss_tools.errors import BadCheckpoint
from oss_tools.models import open_checkpoint


def compared(base, other):
    with open_checkpoint(base) as one, open_checkpoint(other) as two:
        return compare_weights(one, two)


@pytest.fixture(scope="module")
def bf16(tiny_gpt_oss, tmp_path_factory):
    return make(tiny_gpt_oss, recipe_called("bf16"), tmp_path_factory.mktemp("weights"))


def test_a_copy_has_no_error(bf16):
    error, findings = compared(bf16, bf16)
    assert error.relative_error == 0
    assert all(cell.relative_error == 0 and not cell.suspicious for cell in error.cells)
    assert findings == []


@pytest.mark.parametrize("recipe", ["int8", "q8_0", "q4_0", "mxfp4"])
def test_honest_rounding_is_not_suspicious(bf16, recipe, tmp_path):
    error, findings = compared(bf16, make(bf16, recipe_called(recipe), tmp_path))
    assert findings == []
    roles = {cell.role for cell in error.cells}
    assert {"attention.q", "experts.gate_up", "experts.down", "router"} <= roles
    assert {cell.layer for cell in error.cells} == {None, 0, 1}


@pytest.mark.parametrize(
    ("spoil", "tensor"),
    [
        (shifted_scales("model.layers.1.mlp.experts.down_proj"), "model.layers.1.mlp.experts.down_proj"),
        (swapped_gate_and_up("model.layers.0.mlp.experts.gate_up_proj", 2), "model.layers.0.mlp.experts.gate_up_proj[2]"),
        (swapped_experts("model.layers.1.mlp.experts.gate_up_proj", 0, 3), "model.layers.1.mlp.experts.gate_up_proj"),
    ],
    ids=["scales off by one", "gate and up swapped", "experts exchanged"],
)
def test_damage_is_found_where_it_is(bf16, tmp_path, spoil, tensor):
    damaged = make(bf16, recipe_called("mxfp4"), tmp_path)
    for name, edit in spoil.items():
        change(damaged, name, edit)
    error, findings = compared(bf16, damaged)
    assert [f.subject for f in findings] == [tensor]
    assert f"{tensor}: relative error" in findings[0].message
    marked = [cell for cell in error.cells if cell.suspicious]
    assert [(cell.layer, cell.role) for cell in marked] == [(findings[0].layer, findings[0].role)]


def test_other_models_are_refused(tiny_gpt_oss, tiny_llama):
    with pytest.raises(BadCheckpoint, match="not one model"):
        compared(tiny_gpt_oss, tiny_llama)
