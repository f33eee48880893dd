"""What tau2's conversations take, before one is held: rough, as nobody knows how long a conversation gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oss_tools.harness.grader import about_tokens

ANSWERS, CALLS, LINES = 8, 10, 8  # of a conversation: the model's answers and calls, the user's lines
MESSAGE, RESULT = 100, 250  # tokens of a line, of a call's result
TOOLS, GUIDELINES = 2500, 1500  # tokens of function schemas, of what the simulated user is told
POLICIES = ("policy.md", "main_policy.md", "tech_support_manual.md")


@dataclass(frozen=True)
class Cost:
    """Of all conversations: the model's requests and the user's, the tokens that each reads, and that the user writes."""

    requests: int
    prompt_tokens: int
    user_requests: int
    user_prompt_tokens: int
    user_tokens: int


def cost(docs: Sequence[dict[str, Any]], checkout: Path) -> Cost:
    """Every request reads the prompt and, in the mean, half of the conversation."""
    policy = sum(about_tokens(file.read_text(encoding="utf-8")) for file in _policies(docs, checkout))
    steps, talk = ANSWERS + CALLS, (ANSWERS + LINES) * MESSAGE
    model = steps * (policy + TOOLS + (talk + CALLS * (RESULT + MESSAGE)) // 2)
    user = LINES * (GUIDELINES + talk // 2)
    n = len(docs)
    return Cost(n * steps, n * model, n * LINES, n * user, n * LINES * MESSAGE)


def _policies(docs: Sequence[dict[str, Any]], checkout: Path) -> list[Path]:
    folder = checkout / "data" / "tau2" / "domains" / str(docs[0]["domain"]) if docs else checkout
    return [folder / name for name in POLICIES if (folder / name).is_file()]
