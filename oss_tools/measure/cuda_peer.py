"""transformers' gpt-oss on the same GPU: random weights in bfloat16, made on the device, run as the library does by itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from oss_tools.convert.synth import Shape, load_shape
from oss_tools.errors import MissingPackage, NoRoom, how_to_install
from oss_tools.measure.cuda_speed import ROUNDS, WORK, Work
from oss_tools.measure.synthetic import SyntheticCheckpoint
from oss_tools.sizes import format_size

ROOM = (
    12e9  # bytes beside the weights: of scores in bfloat16 that its attention holds at DEEPEST there are four times 2.1 GB
)
LONG = 8  # seconds after which no further round of one figure is begun
DEEPEST = 4096  # positions whose scores its attention, which holds them all, has room for


def speed(shape: str | Shape, work: Work = WORK, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Generation and prompts, timed as ours are. Raises MissingPackage, and NoRoom where the weights do not fit."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingPackage(f"the comparison needs torch and transformers: {how_to_install('peers')} ({error})") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingPackage(f"torch {torch.__version__} cannot use this GPU")
    found = load_shape(shape) if isinstance(shape, str) else shape
    needed = 2 * SyntheticCheckpoint(found).parameters + ROOM
    if device == "cuda" and needed > (free := torch.cuda.mem_get_info()[0]):
        raise NoRoom(f"in bfloat16 it needs {format_size(needed)} of the GPU's memory, {format_size(free)} are free")
    config = transformers.GptOssConfig(**found.config)
    config._attn_implementation = "eager"  # the one that knows sinks without further packages
    before, kind = torch.get_default_dtype(), torch.bfloat16
    torch.set_default_dtype(kind)
    try:
        with torch.device(device):
            model = transformers.GptOssForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    yield {
        "facts": {"program": f"transformers {transformers.__version__}", "torch": torch.__version__, "weights": "bfloat16"},
        "parameters": model.num_parameters(),
    }
    with torch.inference_mode():
        generation, prompts = [], []
        for depth in work.depths:
            if depth <= DEEPEST:
                generation.append(timed_generation(model, torch, device, depth, work.generate))
                yield {"generation": generation}
        for length in work.prompts:
            prompts.append(timed_prompt(model, torch, device, length))
            yield {"prompts": prompts}
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    yield {
        "device_memory": {"allocated": memory},
        "summary": f"{generation[0]['tokens_per_second']:.1f} tokens/s; prompt {prompts[-1]['tokens_per_second']:.0f} tokens/s; "
        f"{format_size(memory)}",
    }


def timed(torch: Any, device: str, work: Callable[[], Any]) -> float:
    """Seconds, by events on a GPU."""
    if device != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000


def rounds(torch: Any, device: str, work: Callable[[], Any]) -> list[float]:
    """Seconds of rounds after one that does not count: ROUNDS of them, fewer where they are long."""
    began, seconds = time.monotonic(), [timed(torch, device, work)]
    while len(seconds) < 2 or (len(seconds) <= ROUNDS and time.monotonic() - began < LONG):
        seconds.append(timed(torch, device, work))
    return seconds[1:]


def timed_generation(model: Any, torch: Any, device: str, depth: int, count: int) -> dict[str, Any]:
    """Greedy tokens per second behind `depth` others, the chosen token fed on without the host."""
    tokens = some_tokens(torch, device, model, max(depth, 1))
    state = model(tokens, use_cache=True, logits_to_keep=1)

    def steps() -> None:
        nonlocal state
        for _ in range(count):
            chosen = state.logits[:, -1:].argmax(-1)
            state = model(chosen, past_key_values=state.past_key_values, use_cache=True, logits_to_keep=1)

    seconds = rounds(torch, device, steps)
    return {
        "depth": depth, "tokens_per_second": count / statistics.median(seconds), "rounds": [count / s for s in seconds],
    }  # fmt: skip


def timed_prompt(model: Any, torch: Any, device: str, length: int) -> dict[str, Any]:
    """Prompt tokens per second."""
    tokens = some_tokens(torch, device, model, length)
    work = lambda: model(tokens, use_cache=True, logits_to_keep=1)  # noqa: E731
    seconds = rounds(torch, device, work)
    median = statistics.median(seconds)
    return {"tokens": length, "tokens_per_second": length / median, "time_to_first_token": median, "rounds": seconds}


def some_tokens(torch: Any, device: str, model: Any, count: int) -> Any:
    vocabulary = min(model.config.vocab_size, 20000)
    return torch.tensor([[(7919 * i + 13) % vocabulary for i in range(count)]], device=device)
