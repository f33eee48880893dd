"""Harmony beside openai-harmony: the vocabulary, rendering and parsing, token for token."""

from __future__ import annotations

import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oss_tools.chat.chat_template import HarmonyTemplate
from oss_tools.chat.harmony import Preamble, Special, render
from oss_tools.chat.harmony_parser import HarmonyParser
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.tools.browser import FIND, OPEN, SEARCH
from oss_tools.chat.tools.python import PythonTool
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


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=conversations())
def test_rendering_for_a_completion_is_theirs_token_for_token(text: Text, peer: Any, conversation: Conversation) -> None:
    import openai_harmony as oh

    ours = HarmonyTemplate(text, Preamble.of_gpt_oss(DATE)).encode(conversation)
    expected = peer.render_conversation_for_completion(theirs(conversation), oh.Role.ASSISTANT)
    assert text.decode(ours, skip_special=False) == peer.decode(expected)
    assert ours == expected


def as_schemas(section: Any) -> list[dict[str, Any]]:
    """The tools of one of openai-harmony's own sections, as oss-tools is given them."""
    if not section.tools:
        return [dict(PythonTool.schema)]
    return [{**tool.model_dump(), "name": f"{section.name}.{tool.name}"} for tool in section.tools]


@pytest.mark.parametrize("functions", [False, True])
@pytest.mark.parametrize("names", [("python",), ("browser",), ("python", "browser")])
def test_gpt_oss_s_own_tools_are_declared_as_they_declare_them(
    text: Text, peer: Any, names: tuple[str, ...], functions: bool
) -> None:
    import openai_harmony as oh

    own = [getattr(oh.ToolNamespaceConfig, name)() for name in names]
    system = oh.SystemContent.new().with_conversation_start_date(DATE.isoformat())
    for section in own:
        system = system.with_tools(section)
    messages = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    tools = [tool for section in own for tool in as_schemas(section)]
    if functions:
        weather = {"name": "weather", "description": "of a city", "parameters": {"type": "object", "properties": {}}}
        described = oh.DeveloperContent.new().with_function_tools([oh.ToolDescription.new(*weather.values())])
        messages.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, described))
        tools.insert(0, weather)
    messages.append(oh.Message.from_role_and_content(oh.Role.USER, "6 * 7?"))
    expected = peer.render_conversation_for_completion(oh.Conversation.from_messages(messages), oh.Role.ASSISTANT)
    conversation = Conversation((Message("user", "6 * 7?"),), tuple(tools))
    ours = HarmonyTemplate(text, Preamble.of_gpt_oss(DATE)).encode(conversation)
    assert text.decode(ours, skip_special=False) == peer.decode(expected)
    assert ours == expected


def test_the_vocabulary_is_theirs(text: Text, peer: Any) -> None:
    """Prose and code of several scripts, and random characters of all planes; special tokens by their ids."""
    here = Path(__file__).parents[2]
    texts = [path.read_text(encoding="utf-8") for path in [here / "LICENSE", *(here / "docs").glob("*.md"), Path(__file__)]]
    rng = random.Random(1)
    planes = [(32, 0x250), (0x300, 0x3000), (0x3040, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF)]
    bits = ["'s", "'LL", "12345", "\u0301", "\r\n", "\t", " ", "\n", "//", "<|end|>", "ǅ", "\u200d", " the", "THE", "\xa0"]
    for _ in range(5000):
        parts = [rng.choice(bits) if rng.random() < 0.7 else chr(rng.randrange(*rng.choice(planes))) for _ in range(25)]
        texts.append("".join(parts))
    for sample in texts:
        tokens = text.encode_plain(sample)
        assert tokens == peer.encode(sample, disallowed_special=())
        assert text.decode(tokens) == sample
    for name in ("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"):
        assert [text.special[name]] == peer.encode(name, allowed_special="all")
    assert set(peer.stop_tokens_for_assistant_actions()) <= text.stop_tokens


def answers(conversation: Conversation) -> list[list[Message]]:
    """Every stretch of the assistant's messages."""
    turns: list[list[Message]] = [[]]
    for message in conversation.messages:
        if message.role == "assistant":
            turns[-1].append(message)
        elif turns[-1]:
            turns.append([])
    return [turn for turn in turns if turn]


def completion_of(text: Text, turn: list[Message], recipient_in_role: bool) -> list[int]:
    """The tokens in which a model would say these messages."""
    preamble, question = Preamble(recipient_in_role=recipient_in_role), Message("user", "q")
    start = len(render(Conversation((question,)), preamble))
    pieces = render(Conversation((question, *turn)), preamble, complete=True)[start:]
    ids = ([text.special[p]] if isinstance(p, Special) else text.encode_plain(p) for p in pieces)
    return [token for part in ids for token in part]


def read_by_peer(peer: Any, tokens: list[int]) -> list[Message]:
    """Messages as openai-harmony reads them. Raises its HarmonyError."""
    import openai_harmony as oh

    return [
        Message(
            m.author.role.value,
            "".join(part.text for part in m.content),
            m.channel,
            m.recipient,
            m.content_type.removeprefix("<|constrain|>") if m.content_type else None,
        )
        for m in peer.parse_messages_from_completion_tokens(tokens, oh.Role.ASSISTANT)
    ]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=conversations(), recipient_in_role=st.booleans())
def test_answers_are_read_as_they_read_them(
    text: Text, peer: Any, conversation: Conversation, recipient_in_role: bool
) -> None:
    names = [str(tool["name"]) for tool in conversation.tools]
    for turn in answers(conversation):
        tokens = completion_of(text, turn, recipient_in_role)
        found = HarmonyParser(text, names).read(tokens)
        assert list(found.messages) == read_by_peer(peer, tokens) == turn


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=conversations(), seed=st.integers(0, 2**32))
def test_what_they_refuse_is_never_an_answer(text: Text, peer: Any, conversation: Conversation, seed: int) -> None:
    """Answers with tokens changed, left out or cut off. What both find sound, both read alike."""
    import openai_harmony as oh

    rng = random.Random(seed)
    tokens = completion_of(text, answers(conversation)[0], rng.random() < 0.5)
    special = [
        text.special[name] for name in ("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|call|>")
    ]
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(tokens))
        tokens[at : at + rng.randrange(2)] = [rng.choice([*special, rng.randrange(1000)])] * rng.randrange(2)
        tokens = tokens or [rng.randrange(1000)]
    names = [str(tool["name"]) for tool in conversation.tools]
    found = HarmonyParser(text, names).read(tokens)
    try:
        expected = read_by_peer(peer, tokens)
    except oh.HarmonyError:
        assert found.findings
        assert found.final is None
    else:
        assert found.findings or list(found.messages) == expected


def test_the_browser_s_tools_are_told_as_openai_harmony_tells_them() -> None:
    openai_harmony = pytest.importorskip("openai_harmony")
    theirs = openai_harmony.ToolNamespaceConfig.browser().model_dump(exclude_none=True)["tools"]
    ours = [{**schema, "name": schema["name"].removeprefix("browser.")} for schema in (SEARCH, OPEN, FIND)]
    assert ours == theirs
