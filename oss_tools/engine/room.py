"""How long a context may be where nobody says: what memory has room for beside the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from oss_tools.engine.backend import Options, backend_class
from oss_tools.machine.memory import WORK_BYTES
from oss_tools.models import Checkpoint

SHARE = 0.7  # of what is free beside the weights, for keys and values; the prefix cache and all else have the rest
STREAMED = 0.1  # of all memory, where weights do not fit in and are read again and again
LEAST = 2048  # positions; less is no server, and loading says what is missing


@dataclass(frozen=True)
class Room:
    """Positions of keys and values.

    Attributes:
        context: the most of one sequence.
        positions: of all sequences together.
    """

    context: int
    positions: int


def room_for(
    checkpoint: Checkpoint, backend: str, options: Options, parallel: int = 1, context: int | None = None, models: int = 1
) -> Room:
    """The longest context that the model was made for and memory has room for, or the one that is given; and positions for as
    many of `parallel` sequences of it as there is room for. `models`: how many share what is free, this one included; an
    `options.memory` is this one's own."""
    chosen = backend_class(backend)
    made_for = checkpoint.architecture.context
    each = chosen.position_bytes(checkpoint.architecture, replace(options, context=made_for))
    weights = max(chosen.weight_bytes(checkpoint, options), checkpoint.nbytes)  # mapped ones need memory, too, to be fast
    free = (chosen.free_bytes() if options.memory is None else options.memory) - WORK_BYTES
    spare = max((free - weights) / (models if options.memory is None else 1) * SHARE, free * STREAMED, 0)
    fitting = int(spare / each) if each else parallel * made_for
    context = context or min(made_for, max(fitting, LEAST))
    return Room(context, max(min(fitting, parallel * context), context))
