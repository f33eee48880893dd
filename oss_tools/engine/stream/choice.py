"""Whether a model's experts stream: where the user gave a size, and where a model does not fit into what is free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from oss_tools.engine.backend import Options
from oss_tools.engine.numba_weights import kernel_bytes
from oss_tools.engine.stream.plan import Plan, plan_streaming
from oss_tools.errors import NoRoom
from oss_tools.machine import memory
from oss_tools.models import Checkpoint
from oss_tools.sizes import format_size

KEPT_FREE = 16  # without a size that the user gave, one part in so many of what is free is left to others


def choose(
    checkpoint: Checkpoint, options: Options, context_bytes: int, require: Callable[[Checkpoint, Options], Options]
) -> Options:
    """The options with a plan, if experts are to stream.

    Args:
        context_bytes: of one context's keys and values.
        require: raises NoRoom if the model does not fit as it is loaded otherwise.

    Raises NoRoom if it does not fit at all, or not into the size given.
    """
    if options.memory is not None:
        asked = plan_streaming(checkpoint, options.memory, context_bytes, options.prefix_bytes)
        if (free := memory.available_memory() + memory.taken_memory()) < asked.takes:
            raise NoRoom(f"--memory: {format_size(asked.takes)} would be taken, {format_size(free)} are free")
        return replace(options, prefix_bytes=asked.prefix_bytes, streaming=None if asked.is_whole else asked)
    try:
        chosen = require(checkpoint, options)
    except NoRoom:
        if (plan := _plan(checkpoint, options, context_bytes, must=True)) is None:
            raise
        return _streaming(plan, options)
    is_mapped = options.load == "mapped" and checkpoint.container == "ready"
    if is_mapped and kernel_bytes(checkpoint) > memory.available_memory():
        plan = _plan(checkpoint, options, context_bytes, must=False)
        return _streaming(plan, options) if plan else chosen
    return chosen


def _plan(checkpoint: Checkpoint, options: Options, context_bytes: int, must: bool) -> Plan | None:
    """A plan for what is free; None where experts make no difference, or, unless it must be, are not enough of one."""
    free = memory.available_memory()
    try:
        plan = plan_streaming(checkpoint, free - free // KEPT_FREE, context_bytes, options.prefix_bytes)
    except NoRoom:
        if must and checkpoint_has_experts(checkpoint):
            raise
        return None
    return None if plan.is_whole else plan


def checkpoint_has_experts(checkpoint: Checkpoint) -> bool:
    return any(entry.spec.role.startswith("experts.") for entry in checkpoint.entries.values())


def _streaming(plan: Plan, options: Options) -> Options:
    options.say(
        f"the weights ({format_size(plan.resident_bytes + plan.streamed_bytes)}) do not fit into the free memory: "
        f"{format_size(plan.resident_bytes)} are loaded; of {plan.experts} experts {plan.slots} are kept in "
        f"{format_size(plan.cache_bytes)}, the others read from the disk when chosen; --memory says how much may be taken"
    )
    return replace(options, prefix_bytes=plan.prefix_bytes, streaming=plan)
