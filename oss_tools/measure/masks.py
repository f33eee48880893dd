"""What holding an answer to a form costs for each token, with gpt-oss's vocabulary of 201,088 tokens.

python -m oss_tools.measure.masks --output FILE

Answers are read token by token as they would be generated, reasoning included: for each token the mask is computed and laid over
logits, and the token accepted. Needs bpe-openai and llguidance, no model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.chat.chat_template import HarmonyTemplate
from oss_tools.chat.harmony import Preamble
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.structured import Form, constraint_for
from oss_tools.checkpoints import Metadata
from oss_tools.engine.constraints import Grammars
from oss_tools.engine.o200k import VOCABULARY
from oss_tools.engine.text import Text
from oss_tools.escapes import json_text
from oss_tools.measure.machine import machine, versions

STEP = 0.150  # seconds: a decode step of gpt-oss-20b on two cores (results/bench-gpt-oss-20b.json)
THOUGHT = "The user wants the facts in a fixed form. I look at what is given, and write every field in its order. " * 3
ORDER = {
    "type": "object",
    "properties": {
        "customer": {"type": "string"},
        "paid": {"type": "boolean"},
        "placed": {"type": "string", "format": "date"},
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 80},
                    "count": {"type": "integer", "minimum": 1, "maximum": 1000},
                    "price": {"type": "number"},
                    "colour": {"enum": ["red", "green", "blue", None]},
                },
                "required": ["name", "count", "price", "colour"],
                "additionalProperties": False,
            },
        },
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["customer", "paid", "placed", "items", "note"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["name", "parts"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
ITEM = {"name": "Füllfederhalter, schwarz", "count": 12, "price": 24.95, "colour": "blue"}
CASES: dict[str, tuple[Form, str]] = {
    "an order": (
        Form.json_schema(ORDER),
        json.dumps(
            {
                "customer": "Ada Lovelace, London",
                "paid": True,
                "placed": "2026-02-03",
                "items": [ITEM] * 6,
                "note": "Please ring twice; the door is green. 请按两次门铃。",
            },
            ensure_ascii=False,
            indent=2,
        ),
    ),
    "a tree": (
        Form.json_schema(TREE),
        json.dumps({"name": "root", "parts": [{"name": f"part {i}", "parts": []} for i in range(30)]}),
    ),
    "any object": (Form.json_object(), json.dumps({"a": [1, 2.5, "x" * 40], "b": {"c": None, "d": [True] * 20}})),
    "an expression": (Form.regex(r"(\d{4}-\d{2}-\d{2}: [a-z ]{1,40}\n){1,20}"), "2026-02-03: rain and wind\n" * 12),
}


def measure(rounds: int = 5) -> dict[str, Any]:
    """The record: for each form the compilation in seconds, and microseconds for each token of reasoning and of the answer."""
    text = Text(Metadata({"model_type": "gpt_oss", "vocab_size": VOCABULARY}))
    began = time.perf_counter()
    grammars = Grammars(text, VOCABULARY)
    vocabulary = time.perf_counter() - began
    template = HarmonyTemplate(text, Preamble.of_gpt_oss())
    return {
        "kind": "masks",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "vocabulary": VOCABULARY,
        "step_seconds": STEP,
        "vocabulary_seconds": vocabulary,
        "machine": machine(),
        "versions": versions("llguidance", "numpy"),
        "forms": {name: _measured(template, grammars, form, answer, rounds) for name, (form, answer) in CASES.items()},
    }


def _measured(template: HarmonyTemplate, grammars: Grammars, form: Form, answer: str, rounds: int) -> dict[str, Any]:
    text = template.text
    began = time.perf_counter()
    new = constraint_for(template, grammars, Conversation((Message("user", "Tell me."),)), form)
    compiled = time.perf_counter() - began
    assert new
    thought = text.encode(f"<|channel|>analysis<|message|>{THOUGHT}<|end|>", special=False)
    said = text.encode(f"<|start|>assistant<|channel|>final<|message|>{answer}<|return|>", special=False)
    logits = np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32)
    seconds = np.array([_times(new(), logits, thought + said) for _ in range(rounds)])
    best = np.median(seconds, axis=0) * 1e6
    parts = {"reasoning": best[: len(thought)], "answer": best[len(thought) :]}
    return {
        "compile_seconds": compiled,
        **{
            f"{name}_microseconds": {
                "tokens": len(found),
                "mean": float(found.mean()),
                "p50": float(np.percentile(found, 50)),
                "p99": float(np.percentile(found, 99)),
                "max": float(found.max()),
            }
            for name, found in parts.items()
        },
        "first_round_mean_microseconds": float(seconds[0].mean() * 1e6),
        "share_of_a_step": float(best.mean() * 1e-6 / STEP),
    }


def _times(constraint: Any, logits: np.ndarray, tokens: list[int]) -> list[float]:
    """Seconds that each token takes: a copy of the logits, the mask over it, the choice accepted."""
    found = []
    for token in tokens:
        began = time.perf_counter()
        allowed = logits.copy()
        constraint.mask(allowed)
        constraint.accept(token)
        found.append(time.perf_counter() - began)
        assert allowed[token] == logits[token], "what is read is allowed"
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m oss_tools.measure.masks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    record = measure(options.rounds)
    for name, found in record["forms"].items():
        answer = found["answer_microseconds"]
        print(
            f"{name}: compiled in {found['compile_seconds'] * 1e3:.1f} ms; a token of the answer {answer['mean']:.0f} µs "
            f"(99 of 100 below {answer['p99']:.0f}), of reasoning {found['reasoning_microseconds']['mean']:.0f} µs; "
            f"{found['share_of_a_step']:.2%} of a step of {STEP * 1e3:.0f} ms"
        )
    if options.output:
        options.output.write_text(json_text(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
