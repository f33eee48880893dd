"""How fast published shapes run on a GPU: generation, prompts, batches, and where a step's and a pass's time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oss_tools.convert.synth import Shape, load_shape
from oss_tools.engine.engine import Engine
from oss_tools.measure.cuda_drawn import drawn_engine
from oss_tools.measure.peak import own_peak
from oss_tools.measure.synthetic import SyntheticCheckpoint
from oss_tools.sizes import format_size

ROUNDS = 3
BATCH_DEPTH, BATCH_STEPS = 16, 32  # tokens that sequences of a batch begin with, and steps that are timed
TARGETS = {  # on an H100
    "gpt-oss-20b": {"decode_tokens_per_second": 450, "prompt_tokens_per_second": 11000},
    "gpt-oss-20b mxfp4-q8": {"decode_tokens_per_second": 520, "prompt_tokens_per_second": 11000},
    "gpt-oss-120b": {"decode_tokens_per_second": 330, "prompt_tokens_per_second": 5000, "device_bytes": 78 << 30},
}


@dataclass(frozen=True)
class Work:
    """What is timed: prompts of so many tokens, generation behind so many others, so many tokens a round, and of so many
    sequences at once."""

    prompts: tuple[int, ...] = (512, 2048)
    depths: tuple[int, ...] = (0, 4096, 32768)
    batches: tuple[int, ...] = (8, 32)
    generate: int = 64

    @property
    def context(self) -> int:
        return max(*self.prompts, max(self.depths) + 1 + (2 * ROUNDS + 2) * self.generate, BATCH_DEPTH + BATCH_STEPS + 1)


WORK = Work()


def speed(shape: str | Shape, recipe: str = "", work: Work = WORK) -> Iterator[dict[str, Any]]:
    """Weights of noise in a published shape, drawn on the device: generation, prompts, batches, memory, and where a step's and a
    pass's time goes. Raises NoRoom where they do not fit."""
    checkpoint = SyntheticCheckpoint(load_shape(shape) if isinstance(shape, str) else shape, recipe)
    began = time.perf_counter()
    engine = drawn_engine(checkpoint, work.context)
    backend: Any = engine.backend
    backend.device.synchronize()
    loaded = time.perf_counter() - began
    facts = backend.facts()
    yield {
        "facts": facts, "parameters": checkpoint.parameters, "stored_bytes": checkpoint.nbytes, "load_seconds": loaded,
        "host_peak_bytes": own_peak(),
    }  # fmt: skip
    copy = backend.ceilings()
    yield {"copy_bytes_per_second": copy["read"], "matrix_vector_bytes_per_second": copy["multiply"]}
    generation, prompts, batches = [], [], []
    for depth in work.depths[:1]:
        generation.append(timed_generation(engine, depth, work.generate, copy["read"]))
        yield {"generation": generation, "step": backend.profile(1)}
    for length in work.prompts:
        prompts.append(timed_prompt(engine, length))
        yield {"prompts": prompts}
    yield {"pass": backend.profile(min(work.prompts[0], backend.chunk))}
    for depth in work.depths[1:]:
        generation.append(timed_generation(engine, depth, work.generate, copy["read"]))
        yield {"generation": generation}
    for count in work.batches:
        batches.append(timed_batch(engine, count))
        yield {"batches": batches}
    memory = backend.device_memory()
    first, last = generation[0], prompts[-1]
    reached = {
        "decode_tokens_per_second": first["tokens_per_second"],
        "prompt_tokens_per_second": min(p["tokens_per_second"] for p in prompts),
        "device_bytes": memory["used"],
    }
    yield {
        "device_memory": memory,
        "targets_on_an_h100": {
            name: {"wanted": wanted, "reached": reached[name]}
            for name, wanted in TARGETS.get(f"{checkpoint.path.name} {recipe}".strip(), {}).items()
        },
        "summary": f"{facts['device']}: {first['tokens_per_second']:.0f} tokens/s, {first['share_of_copy']:.0%} of the copy's "
        f"bandwidth; prompt {last['tokens_per_second']:.0f} tokens/s; {format_size(memory['used'])} of its memory",
    }


def timed_generation(engine: Engine, depth: int, count: int, copy: float) -> dict[str, Any]:
    """Tokens per second behind `depth` others: chosen and fed on by the device alone, and step by step through the engine."""
    backend: Any = engine.backend
    sequence = filled(engine, depth, (2 * ROUNDS + 2) * count)
    start = len(sequence.tokens)
    alone = []
    for round_number in range(ROUNDS + 1):
        passed = backend.stopwatch()
        backend.enqueue(sequence.cache, 1, start + round_number * count, count)
        alone.append(passed())
    steps = []
    for _ in range(ROUNDS):
        for token in some_tokens(engine, count):
            passed = backend.stopwatch()
            engine.likeliest([sequence], [token])
            steps.append(passed())
    steps = sorted(steps[count:])
    rate = count / statistics.median(alone[1:])
    nbytes = backend.weights.bytes_per_token(engine.architecture) + cache_bytes(engine, start + count)
    return {
        "depth": depth,
        "tokens_per_second": rate,
        "rounds": [count / seconds for seconds in alone[1:]],
        "bytes_per_token": nbytes,
        "share_of_copy": rate * nbytes / copy,
        "step_seconds_p50": statistics.median(steps),
        "step_seconds_p95": steps[int(0.95 * len(steps))],
    }


def cache_bytes(engine: Engine, position: int) -> int:
    """Bytes of keys and values, in bfloat16, that a step at this position reads."""
    heads = engine.architecture.attention_layers()
    return sum(2 * h.cached * min(position, h.window or position) for h in heads)


def timed_prompt(engine: Engine, length: int) -> dict[str, Any]:
    """Seconds to the first token of a prompt, and its tokens per second."""
    tokens = some_tokens(engine, length)
    seconds = []
    for _ in range(ROUNDS + 1):
        sequence = engine.open(tokens, reuse=0)
        passed = engine.backend.stopwatch()
        engine.prefill(sequence, tokens)
        seconds.append(passed())
    median = statistics.median(seconds[1:])
    return {"tokens": length, "tokens_per_second": length / median, "time_to_first_token": median, "rounds": seconds[1:]}


def timed_batch(engine: Engine, count: int, steps: int = BATCH_STEPS) -> dict[str, Any]:
    """Tokens per second of so many sequences that generate together, greedily."""
    sequences = [filled(engine, BATCH_DEPTH, steps + 1) for _ in range(count)]
    tokens = some_tokens(engine, count)
    seconds = []
    for _ in range(steps):
        passed = engine.backend.stopwatch()
        tokens = engine.likeliest(sequences, tokens).tolist()
        seconds.append(passed())
    median = statistics.median(seconds[4:])
    return {"sequences": count, "tokens_per_second": count / median, "step_seconds_p50": median}


def filled(engine: Engine, depth: int, room: int) -> Any:
    """A sequence of `depth` tokens, or of one, with room for others."""
    tokens = some_tokens(engine, max(depth, 1))
    sequence = engine.open(tokens, room=room, reuse=0)
    engine.prefill(sequence, tokens)
    return sequence


def some_tokens(engine: Engine, count: int) -> list[int]:
    vocabulary = min(engine.backend.vocabulary, 20000)
    return [(7919 * i + 13) % vocabulary for i in range(count)]
