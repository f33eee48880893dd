"""How long a context is where nobody says."""

from pathlib import Path

import pytest

from oss_tools.engine.backend import Options
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.engine.room import LEAST, room_for
from oss_tools.machine.memory import WORK_BYTES
from oss_tools.models import open_checkpoint


@pytest.mark.parametrize("models", [1, 2])
def test_context_is_what_the_model_was_made_for_or_what_fits(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, models: int
) -> None:
    options = Options()
    with open_checkpoint(tiny_llama) as checkpoint:
        made_for = checkpoint.architecture.context
        each = NumbaBackend.position_bytes(checkpoint.architecture, options)
        weights = max(NumbaBackend.weight_bytes(checkpoint, options), checkpoint.nbytes) + WORK_BYTES

        def room(free: int, **more: int) -> tuple[int, int]:
            monkeypatch.setattr(NumbaBackend, "free_bytes", classmethod(lambda cls: free))
            found = room_for(checkpoint, "numba", options, parallel=4, models=models, **more)
            assert found.positions >= found.context
            assert (found.positions - found.context) * each <= max(free - weights, 0) / models  # all that lives fits in
            return found.context, found.positions

        assert room(1 << 50) == (made_for, 4 * made_for)
        assert room(0)[0] == min(LEAST, made_for)
        assert room(1 << 50, context=100) == (100, 400)
        assert room(0, context=100) == (100, 100)
