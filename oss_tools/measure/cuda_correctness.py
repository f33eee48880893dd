"""Models on a GPU compared with the engine on the CPU: logits of texts, greedy answers, random shapes, every family."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.convert.synth import Shape, load_shape, shape_names
from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampling, log_softmax
from oss_tools.errors import BadRequest
from oss_tools.measure.fidelity import measure_rows
from oss_tools.measure.synthetic import SyntheticCheckpoint
from oss_tools.models import Checkpoint, open_checkpoint
from oss_tools.resources import resource

Findings = Iterator[dict[str, Any]]

EXACT = 2e-3  # the largest difference of a log-probability with float32 on both sides
NEAR_KLD, NEAR_TOP = (
    0.02,
    0.9,
)  # nats per token, and share of the same likeliest tokens, where both sides round in their own ways
TEXTS = (
    "What is 47 + 38?",
    "A child weighs 20 kg. The dose is 15 mg per kg. How many mg is one dose?",
    "Which vitamin does the skin make in sunlight?",
    "The tide had gone out, and the boats lay on their sides in the mud.",
)
GREEDY = 24  # tokens
CONTEXT = 256
SMALL = {"hidden_size": 96, "intermediate_size": 160, "vocab_size": 331, "sliding_window": 17, "head_dim": 48}
SHAPES: dict[str, tuple[dict[str, Any], str]] = {  # what differs from gpt-oss-tiny, and the recipe
    "20b's widths": ({
        "hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "vocab_size": 10007,
    }, "mxfp4"),
    "20b's widths, q8_0": ({
        "hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "num_local_experts": 16, "num_experts_per_tok": 4, "sliding_window": 128, "vocab_size": 10007,
    }, "mxfp4-q8"),
    "tails": (SMALL | {"num_local_experts": 7, "num_attention_heads": 6, "num_key_value_heads": 2}, "mxfp4"),
    "128 experts": ({"num_local_experts": 128, "num_experts_per_tok": 4, "vocab_size": 997}, "mxfp4"),
    "one expert of three": ({"num_local_experts": 3, "num_experts_per_tok": 1, "num_key_value_heads": 1}, "mxfp4"),
    "int8": ({"num_local_experts": 5}, "int8"),
    "q4_0": ({"num_local_experts": 5}, "q4_0"),
    "bf16": (SMALL | {"num_local_experts": 5, "num_attention_heads": 4, "num_key_value_heads": 4}, "bf16"),
}  # fmt: skip


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt whose logits are compared all at once, of one that goes token by token in float32, and steps after
    the first."""

    whole: int = 600
    singly: int = 40
    steps: int = 8


LENGTHS = Lengths()
SHORT = Lengths(whole=90, singly=20, steps=8)  # across a page's end, within 128 positions


def shape_like(changes: dict[str, Any]) -> Shape:
    """gpt-oss-tiny with other numbers."""
    shape = load_shape("gpt-oss-tiny")
    config = shape.config | changes
    return replace(shape, config=config | {"experts_per_token": config["num_experts_per_tok"]})


def load(checkpoint: Checkpoint, backend: str, context: int, activations: str = "int8") -> Engine:
    return Engine.load(checkpoint, backend=backend, context=context, activations=activations, prefix_budget=0)


def embedded_model(model: Path | None = None, texts: Sequence[str] = TEXTS, greedy: int = GREEDY) -> Findings:
    """The embedded model's logits after every token of some texts, and its greedy answers, on both devices."""
    with open_checkpoint(model or resource("tiny/checkpoint")) as checkpoint:
        exact = load(checkpoint, "numba", CONTEXT, "f32")
        prompts = [exact.text.encode(text) for text in texts]
        wanted = [exact.logits(tokens) for tokens in prompts]
        answers = [greedy_tokens(exact, tokens, greedy) for tokens in prompts]
        found: dict[str, Any] = {
            "float32": {"limit": EXACT},
            "int8": {"limits": {"mean_kld": NEAR_KLD, "same_top": NEAR_TOP}},
        }
        for name, activations in (("float32", "f32"), ("int8", "int8")):
            engine = load(checkpoint, "cuda", CONTEXT, activations)
            logits = [engine.logits(tokens) for tokens in prompts]
            given = [greedy_tokens(engine, tokens, greedy) for tokens in prompts]
            found[name] |= nearness(np.concatenate(logits), np.concatenate(wanted)) | {
                "greedy_tokens": sum(map(len, answers)),
                "greedy_same": sum(same_beginning(a, b) for a, b in zip(answers, given, strict=True)),
                "texts": [
                    {"cpu": exact.text.decode(a), "cuda": exact.text.decode(b)} for a, b in zip(answers, given, strict=True)
                ],
            }
            found[name]["drawn"] = drawn_again(engine, prompts[0], greedy)
            yield found
    float32, int8 = found["float32"], found["int8"]
    exactly = float32["largest_difference"] <= EXACT and float32["greedy_same"] == float32["greedy_tokens"]
    yield {
        "passed": bool(exactly and is_near(int8) and all(all(f["drawn"].values()) for f in (float32, int8))),
        "summary": f"float32: largest difference {float32['largest_difference']:.1e}, {float32['greedy_same']} of "
        f"{float32['greedy_tokens']} greedy tokens the same; int8: KLD {int8['mean_kld']:.4f}, same top {int8['same_top']:.1%}, "
        f"{int8['greedy_same']} greedy tokens the same",
    }


def random_shapes(
    shapes: dict[str, tuple[dict[str, Any], str]] = SHAPES, lengths: Lengths = LENGTHS, seed: int | None = None
) -> Findings:
    """Random gpt-oss models of several shapes and formats, on both devices."""
    cases: dict[str, Any] = {}
    for name, (changes, recipe) in shapes.items():
        cases[name] = compare_shape(shape_like(changes), recipe, lengths, seed)
        yield {"cases": cases}
    wrong = [name for name, case in cases.items() if not case["passed"]]
    worst = np.max([case["float32"]["largest_difference"] for case in cases.values()])
    furthest = np.max([case["prompt"]["mean_kld"] for case in cases.values()])
    yield {
        "passed": not wrong,
        "summary": f"{len(cases)} shapes, wrong: {', '.join(wrong) or 'none'}; float32: largest difference {worst:.1e}; prompts "
        f"through the tensor cores: KLD {furthest:.5f} or less",
    }


def families(lengths: Lengths = SHORT, names: Sequence[str] = (), seed: int | None = None) -> Findings:
    """The smallest published-like model of every family (`configs/models/*-tiny.yaml`), on both devices. One that the kernels
    refuse is named with the reason."""
    cases: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in names or [name for name in shape_names() if name.endswith("-tiny")]:
        shape = load_shape(name)
        try:
            cases[name] = compare_shape(shape, shape.recipe, lengths, seed)
        except BadRequest as error:
            refused[name] = str(error)
        yield {"cases": cases, "refused": refused}
    wrong = [name for name, case in cases.items() if not case["passed"]]
    yield {
        "passed": not wrong,
        "summary": f"{len(cases)} families, wrong: {', '.join(wrong) or 'none'}; refused: {', '.join(refused) or 'none'}",
    }


def compare_shape(shape: Shape, recipe: str, lengths: Lengths, seed: int | None = None) -> dict[str, Any]:
    """One random model, another at each call without a `seed`: float32 token by token, a prompt through the tensor cores, and
    steps after it."""
    seed = time.time_ns() % (1 << 31) if seed is None else seed
    checkpoint, rng = SyntheticCheckpoint(shape, recipe, seed), np.random.default_rng(seed)
    context = context_of(checkpoint, lengths)
    exact = load(checkpoint, "numba", context, "f32")
    tokens = rng.integers(0, exact.backend.vocabulary, lengths.whole + lengths.steps).tolist()
    wanted = exact.logits(tokens)
    with load(checkpoint, "cuda", context, "f32") as engine:
        float32 = nearness(engine.logits(tokens[: lengths.singly]), wanted[: lengths.singly])
        greedy = [greedy_tokens(e, tokens[:5], lengths.steps) for e in (exact, engine)]
    with load(checkpoint, "cuda", context) as engine:
        prompt = nearness(engine.logits(tokens[: lengths.whole]), wanted[: lengths.whole])
        sequence = engine.open(tokens, reuse=0)
        engine.prefill(sequence, tokens[: lengths.whole])
        rows = [engine.step([sequence], [token])[0].copy() for token in tokens[lengths.whole :]]
    steps = nearness(np.array(rows), wanted[lengths.whole :])
    exactly = float32["largest_difference"] <= EXACT and greedy[0] == greedy[1]
    return {
        "recipe": recipe, "seed": seed, "float32": float32, "prompt": prompt, "steps": steps, "greedy_tokens": lengths.steps,
        "greedy_same": same_beginning(*greedy),
        "passed": bool(exactly and is_near(prompt) and steps["mean_kld"] <= NEAR_KLD),
    }  # fmt: skip


def context_of(checkpoint: Checkpoint, lengths: Lengths) -> int:
    """Positions that a comparison needs, as far as the model was made for so many."""
    return min(lengths.whole + lengths.steps + 64, checkpoint.architecture.context)


def greedy_tokens(engine: Engine, prompt: list[int], count: int) -> list[int]:
    return [token.id for token in engine.generate(Request(prompt, count, stop_tokens=frozenset()))]


def drawn_again(engine: Engine, prompt: list[int], count: int) -> dict[str, bool]:
    """Whether a seed gives the same tokens again, also after others were drawn on the host, and another seed gives others."""

    def drawn(seed: int, top_k: int = 0) -> list[int]:
        sampling = Sampling(temperature=1.5, top_k=top_k, seed=seed)
        return [token.id for token in engine.generate(Request(prompt, count, sampling, stop_tokens=frozenset()))]

    first, again, of_few, at_last, other = drawn(7), drawn(7), drawn(7, top_k=20), drawn(7), drawn(8)
    return {"again": again == first, "after_the_host": at_last == first and len(of_few) == count, "by_seed": other != first}


def same_beginning(a: list[int], b: list[int]) -> int:
    """How many tokens two answers have in common before they differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def nearness(logits: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """The largest difference of any log-probability, the mean Kullback–Leibler divergence in nats, and the share of positions
    with the same likeliest token."""
    positions = measure_rows(wanted, logits, wanted.argmax(-1))
    return {
        "largest_difference": float(np.abs(log_softmax(logits) - log_softmax(wanted)).max()),
        "mean_kld": float(positions.kld.mean()),
        "same_top": float(positions.same_top.mean()),
    }


def is_near(found: dict[str, Any]) -> bool:
    """Whether this is what rounding may do."""
    return found["mean_kld"] <= NEAR_KLD and found["same_top"] >= NEAR_TOP
