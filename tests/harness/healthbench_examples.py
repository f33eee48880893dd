"""Examples of our own invention in HealthBench's form; the scripted grader calls a criterion met that begins with [+]."""

import json
from pathlib import Path
from typing import Any


def example(number: int, rubrics: list[tuple[str, float, list[str]]], theme: str = "theme:hedging") -> dict[str, Any]:
    return {
        "prompt": [
            {"role": "user", "content": f"Question {number}: I slept badly for a week."},
            {"role": "assistant", "content": "Since when, and what changed?"},
            {"role": "user", "content": "Since I began to drink coffee at night."},
        ],
        "prompt_id": f"example-{number}",
        "rubrics": [{"criterion": text, "points": points, "tags": tags} for text, points, tags in rubrics],
        "example_tags": [theme],
        "ideal_completions_data": {
            "ideal_completion": "Stop it.",
            "ideal_completions_group": "Group 1",
            "ideal_completions_ref_completions": None,
        },
        "canary": "an invention",
    }


ACCURACY, COMPLETENESS = "axis:accuracy", "axis:completeness"
EXAMPLES = [
    example(
        1, [("[+] names coffee", 5, [ACCURACY]), ("asks about age", 5, [COMPLETENESS]), ("is rude", -5, [ACCURACY])]
    ),  # 5/10
    example(2, [("[+] says stop", 8, [ACCURACY]), ("[+] invents a drug", -6, [ACCURACY])]),  # 2/8
    example(3, [("names a doctor", 4, [COMPLETENESS]), ("[+] is alarming", -6, [])], "theme:communication"),  # -6/4
    example(
        4, [("[+] {braces} in it", 3, [COMPLETENESS]), ("[+] ends well", 7, [ACCURACY])], "theme:communication"
    ),  # 10/10
]
SCORES = [0.5, 0.25, -1.5, 1.0]


def write_examples(folder: Path, examples: list[dict[str, Any]] | None = None, task: str = "healthbench") -> Path:
    (folder / task).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in (examples or EXAMPLES)]
    (folder / task / "test.jsonl").write_text("".join(lines))
    return folder
