"""Harmony beside openai-harmony: the vocabulary, rendering and parsing, token for token."""

from __future__ import annotations

import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

from oss_tools.chat.chat_template import HarmonyTemplate
from oss_tools.chat.harmony import CHANNEL, Preamble, Special, render
from oss_tools.chat.messages import Conversation, Message
from oss_tools.checkpoints import Metadata
from oss_tools.engine import o200k
from oss_tools.engine.text import Text
from tests.chat.conversations import conversations

pytestmark = pytest.mark.peers
DATE = date(2026, 5, 4)


@pytest.fixture(scope="module")
def text() -> Text:
    pytest.importorskip("bpe_openai", reason="needs the extra `harmony`")
    return Text(Metadata({"model_type": "gpt_oss", "vocab_size": o200k.VOCABULARY}))


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """openai-harmony's encoding, which takes its vocabulary from a folder instead of the network."""
    openai_harmony = pytest.importorskip("openai_harmony", reason="needs the extra `peers`")
    pytest.importorskip("bpe_openai", reason="needs the extra `harmony`")
    folder: Path = tmp_path_factory.mktemp("encodings")
    (folder / "o200k_base.tiktoken").write_bytes(o200k.ranks_file())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def theirs(conversation: Conversation) -> Any:
    """The conversation in openai-harmony's terms."""
    import openai_harmony as oh

    system = oh.SystemContent.new().with_conversation_start_date(DATE.isoformat())
    system = system.with_reasoning_effort(oh.ReasoningEffort(conversation.effort.capitalize()))
    messages = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    if conversation.instructions is not None or conversation.tools:
        developer = oh.DeveloperContent.new()
        if conversation.instructions is not None:
            developer = developer.with_instructions(conversation.instructions)
        if conversation.tools:
            tools = [oh.ToolDescription.new(t["name"], t["description"], t.get("parameters")) for t in conversation.tools]
            developer = developer.with_function_tools(tools)
        messages.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    for m in conversation.messages:
        message = oh.Message.from_author_and_content(oh.Author(role=oh.Role(m.role), name=m.name), m.content)
        message.channel, message.recipient = m.channel, m.recipient
        message.content_type = f"<|constrain|>{m.content_type}" if m.content_type else None
        messages.append(message)
    return oh.Conversation.from_messages(messages)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=conversations())
def test_rendering_for_a_completion_is_theirs_token_for_token(text: Text, peer: Any, conversation: Conversation) -> None:
    import openai_harmony as oh

    ours = HarmonyTemplate(text, Preamble.of_gpt_oss(DATE)).encode(conversation)
    expected = peer.render_conversation_for_completion(theirs(conversation), oh.Role.ASSISTANT)
    assert text.decode(ours, skip_special=False) == peer.decode(expected)
    assert ours == expected
