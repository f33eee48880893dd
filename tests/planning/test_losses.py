"""What a format costs a tensor, from some of its rows."""

import numpy as np
import pytest

from oss_tools.formats import get_format
from oss_tools.models import open_checkpoint
from oss_tools.planning import losses
from oss_tools.resources import resource

UP = "model.layers.0.mlp.experts.gate_up_proj"


def test_the_scale_of_a_tensor_is_of_all_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVFP4 has one scale for all experts of a tensor, so rows that are sampled are rounded by the largest value of any."""
    monkeypatch.setattr(losses, "ROWS", 1 << 16)  # all of them
    monkeypatch.setattr(losses, "MATRICES", 64)
    nvfp4 = get_format("nvfp4")
    with open_checkpoint(resource("oss_tools/tiny/checkpoint")) as checkpoint:
        entry = checkpoint.entries[UP]
        count, rows, _ = entry.spec.matrices
        whole = [checkpoint.read(UP, matrix, 0, rows).dequantize() for matrix in range(count)]
        amax = max(float(np.abs(values).max()) for values in whole)
        assert checkpoint.largest_magnitude(UP) == amax
        found = losses.noise(checkpoint, entry, [nvfp4], {}, None)["nvfp4"]
    assert len({float(np.abs(values).max()) for values in whole}) > 1
    errors = [values - nvfp4.quantize(values, amax=amax).dequantize() for values in whole]
    assert np.isclose(found, sum(float(np.square(error, dtype=np.float64).sum()) for error in errors))
