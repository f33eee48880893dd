"""Conversations of HTTP clients: what is told where, and what long ones cost."""

from __future__ import annotations

import pytest

from oss_tools.chat.messages import Message
from oss_tools.errors import BadRequest
from oss_tools.serve.history import MOST_OPEN, History


def test_the_order_of_things() -> None:
    history = History()
    history.tell("Be brief.")
    for text in ("One.", "Two."):
        history.ask(text)
    history.think("Hm.")
    history.say("I look.", final=False)
    history.call("find", '{"a": 1}', "x")
    history.call("find", '{"a": 2}', "y")
    history.result("y", "second")
    history.result("x", "first")
    history.tell("Be kind.")
    found = history.conversation()
    assert found.instructions == "Be brief.\n\nBe kind."
    assert found.messages == (
        Message("user", "One.\n\nTwo."),
        Message("assistant", "Hm.", "analysis"),
        Message("assistant", "I look.", "commentary"),
        Message("assistant", '{"a": 1}', "commentary", "functions.find", "json"),
        Message("assistant", '{"a": 2}', "commentary", "functions.find", "json"),
        Message("tool", "first", "commentary", "assistant", name="functions.find"),
        Message("tool", "second", "commentary", "assistant", name="functions.find"),
    )


def test_tools_with_names_of_their_own() -> None:
    history = History({"python", "browser.search"})
    history.ask("?")
    history.call("python", '{"code": "print(1)"}', "x")
    history.result("x", "1")
    history.call("browser.search", '{"query": "y"}', "y")
    history.result("y", "z")
    assert history.conversation().messages[1:] == (
        Message("assistant", "print(1)", "analysis", "python"),
        Message("tool", "1", "analysis", "assistant", name="python"),
        Message("assistant", '{"query": "y"}', "analysis", "browser.search", "json"),
        Message("tool", "z", "analysis", "assistant", name="browser.search"),
    )


def test_calls_that_wait_are_bounded() -> None:
    history = History()
    for number in range(MOST_OPEN):
        history.call("f", "{}", str(number))
    with pytest.raises(BadRequest, match="wait for their results"):
        history.call("f", "{}", "more")


def test_very_many_messages_are_joined_at_once() -> None:
    history = History()
    for _ in range(300_000):
        history.ask("word " * 10)
    assert len(history.conversation().messages[0].content) == 300_000 * 52 - 2


def test_results_come_before_the_user_goes_on() -> None:
    history = History()
    history.call("f", "{}", "x")
    with pytest.raises(BadRequest, match="'x' has no result"):
        history.ask("?")
    history.result("x", "1")
    history.ask("?")
    with pytest.raises(BadRequest, match="not open"):
        history.result("x", "2")
