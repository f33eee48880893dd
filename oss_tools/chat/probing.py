"""What form of calls a template wants, found out by trying: templates do not say it, and fail or write nonsense otherwise.

transformers' convention is arguments as an object. DeepSeek's templates add them to a text, and take a message with content for
an answer; Llama 3.1's allows a message one call. llama.cpp tries templates for the same reason (`common/chat`, "caps").
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.plain import CallForm
from oss_tools.errors import BadCheckpoint

NAME, KEY, RESULT = "probe_tool", "probe_key", "probe_result"
VALUES = ("probe_one", "probe_two")
WRONG = (f"'{KEY}'", f'\\\\"{KEY}')  # the object as Python writes it; JSON in a text of JSON
SCHEMA = {
    "name": NAME,
    "description": NAME,
    "parameters": {"type": "object", "properties": {KEY: {"type": "string", "description": KEY}}, "required": [KEY]},
}


def probe(calls: int) -> Conversation:
    """A conversation with so many calls in one turn, and their results."""
    recipient = f"functions.{NAME}"
    made = [Message("assistant", f'{{"{KEY}": "{value}"}}', "commentary", recipient, "json") for value in VALUES[:calls]]
    results = [Message("tool", RESULT + value, name=recipient) for value in VALUES[:calls]]
    return Conversation((Message("user", "probe"), *made, *results), (SCHEMA,))


def call_form(render: Callable[[Conversation, CallForm], str]) -> CallForm:
    """The form in which a template says most of a call and its result, and what is right; of equal ones the shortest, for what is
    written beside it is a turn without text, or the word None."""

    def fault(form: CallForm, calls: int) -> tuple[int, bool, int]:
        try:
            text = render(probe(calls), form)
        except BadCheckpoint:
            return len(VALUES) * 3, True, 0
        missing = sum(part not in text for value in VALUES[:calls] for part in (NAME, value, RESULT + value))
        return missing, any(wrong in text for wrong in WRONG), len(text)

    best = min((CallForm(text, null) for text, null in product((False, True), repeat=2)), key=lambda form: fault(form, 1))
    single = CallForm(best.text, best.null, single=True)
    return min((best, single), key=lambda form: fault(form, 2)[:2])
