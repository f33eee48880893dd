"""Whether a model's experts stream: where the user gave a size, and where a model does not fit into what is free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from oss_tools.engine import memory
from oss_tools.engine.backend import Options
from oss_tools.engine.numba_weights import kernel_bytes
from oss_tools.engine.stream.plan import Plan, plan_streaming
from oss_tools.errors import NoRoom
from oss_tools.models import Checkpoint
from oss_tools.sizes import format_size

KEPT_FREE = 16  # without a size that the user gave, one part in so many of what is free is left to others


def choose(
    checkpoint: Checkpoint, options: Options, context_bytes: int, require: Callable[[Checkpoint, Options], Options]
) -> Options:
    """The options with a plan, if experts are to stream. `require` raises NoRoom if a model does not fit as it is loaded otherwise;
    context_bytes: of one context's keys and values. Raises NoRoom if it does not fit at all, or not into the size given."""
    if options.memory is not None:
        plan = plan_streaming(checkpoint, options.memory, context_bytes, options.prefix_bytes)
        if (free := memory.available_memory()) < plan.takes:
            raise NoRoom(
                f"{format_size(plan.takes)} of {format_size(options.memory)} are needed, {format_size(free)} are free"
            )
        return replace(options, prefix_bytes=plan.prefix_bytes, streaming=None if plan.is_whole else plan)
    try:
        chosen = require(checkpoint, options)
    except NoRoom:
        if plan := _plan(checkpoint, options, context_bytes, must=True):
            return _streaming(plan, options)
        raise
    if options.load == "mapped" and checkpoint.container == "ready" and kernel_bytes(checkpoint) > memory.available_memory():
        if plan := _plan(checkpoint, options, context_bytes, must=False):
            return _streaming(plan, options)
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
        f"{format_size(plan.resident_bytes)} are loaded, and of {plan.experts} experts {plan.slots} kept in {format_size(plan.cache_bytes)}, "
        "the others read from the disk when they are chosen; --memory says how much may be taken"
    )
    return replace(options, prefix_bytes=plan.prefix_bytes, streaming=plan)
