"""The mixture, the user's texts and conversations, and how they become sequences of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.calibration import texts
from oss_tools.calibration.chats import conversation_of, read_chats
from oss_tools.calibration.mixture import compose
from oss_tools.calibration.texts import MIXTURE, SHARES, Sample, mixture, sample, sources_of
from oss_tools.chat.messages import Message
from oss_tools.checkpoints import Metadata
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint, BadRequest
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource

ROOT = Path(__file__).parent.parent.parent
GRAM = 13  # words


@pytest.fixture(scope="module")
def tiny() -> Iterator[Metadata]:
    with open_checkpoint(resource("tiny/checkpoint")) as checkpoint:
        yield checkpoint.metadata()


def grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)}


def strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def lines_of(path: Path) -> str:
    return "\n".join(" ".join(strings(json.loads(line))) for line in path.read_text().splitlines())


def test_the_mixture_shares_no_thirteen_words_with_what_models_are_judged_by() -> None:
    """With none of the questions, passages and conversations under evals/."""
    ours: set[tuple[str, ...]] = set()
    for name in SHARES:
        path = MIXTURE / name
        ours |= grams(lines_of(path) if path.suffix == ".jsonl" else path.read_text(encoding="utf-8"))
    judged = sorted((ROOT / "evals").rglob("*.jsonl"))
    assert len(ours) > 20_000
    assert len(judged) >= 6
    for path in judged:
        assert not ours & grams(lines_of(path)), path


def test_the_mixture_is_small_and_its_sources_are_told() -> None:
    readme = (MIXTURE / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in readme for name in SHARES)
    assert sum((MIXTURE / name).stat().st_size for name in SHARES) < 850_000
    assert sum(SHARES.values()) == pytest.approx(1)


def test_the_composed_texts_are_composed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "facts.yaml").write_bytes((MIXTURE / "facts.yaml").read_bytes())
    monkeypatch.setattr(compose, "HERE", tmp_path)
    compose.main()
    for name in compose.BYTES:
        assert (tmp_path / name).read_bytes() == (MIXTURE / name).read_bytes()


def test_the_first_tokens_of_the_mixture_have_its_shares(tiny: Metadata) -> None:
    few, many = (sample(tiny, mixture(), tokens, 128, 1 << 20) for tokens in (12_800, 64_000))
    assert few.tokens == 12_800
    for name, share in SHARES.items():
        assert few.shares[name] / few.tokens == pytest.approx(share, abs=0.02)
    for a, b in zip(few.sequences, many.sequences, strict=False):
        np.testing.assert_array_equal(a, b)
    assert few.digest != many.digest
    assert few.digest == sample(tiny, mixture(), 12_800, 128, 1 << 20).digest


def test_conversations_are_whole_in_the_models_own_form(tiny: Metadata) -> None:
    """Harmony with reasoning, the call and its result; the last answer ends the turn."""
    chat = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How warm is it in Bergen? <|end|>"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "I look it up.",
                "tool_calls": [{"id": "a", "function": {"name": "weather", "arguments": '{"city": "Bergen"}'}}],
            },
            {"role": "tool", "tool_call_id": "a", "content": "12"},
            {"role": "assistant", "content": "12 degrees."},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": {}}}],
    }
    conversation = conversation_of(chat)
    assert conversation.instructions == "Be brief."
    assert [(m.role, m.channel, m.recipient) for m in conversation.messages] == [
        ("user", None, None),
        ("assistant", "analysis", None),
        ("assistant", "commentary", "functions.weather"),
        ("tool", "commentary", "assistant"),
        ("assistant", "final", None),
    ]
    assert conversation.messages[3].name == "functions.weather"
    found = sample(tiny, [texts.Source("c", chats=(conversation,))], 4096, 4096, 1 << 20)
    text = Text(tiny)
    (tokens,) = found.sequences
    shown = text.decode(tokens.tolist(), skip_special=False)
    assert shown.startswith("<|start|>system<|message|>")
    assert "I look it up." in shown
    assert shown.endswith("12 degrees.<|return|>")
    assert tokens.tolist().count(text.special["<|end|>"]) == shown.count("<|end|>") - 1  # the user's is letters


def test_files_in_all_their_forms(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}\n\n'
        '{"messages": [{"role": "assistant", "content": "Hello"}], "tools": null}\n'
    )
    assert [chat.messages for chat in read_chats(path)] == [
        (Message("user", "Hi"),),
        (Message("assistant", "Hello", "final"),),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        "[" * 100_000,
        '{"messages": []}',
        '{"messages": [7]}',
        '{"messages": [{"role": "user"',
        '{"messages": [{"role": "wizard", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": 7}]}',
        '{"messages": [{"role": "assistant", "tool_calls": [{}]}]}',
        '{"messages": [{"role": "assistant", "tool_calls": 7}]}',
        '{"messages": [{"role": "user", "content": "x"}], "tools": [7]}',
        '{"messages": [{"role": "user", "content": "x"}], "tools": 7}',
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n' + line)
    with pytest.raises(BadRequest, match=r"chats\.jsonl, line 2: no conversation"):
        read_chats(path)


@pytest.mark.parametrize(("content", "complaint"), [(b"", "is empty"), (b"\xff\xfe\x00", "no UTF-8 text")])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=complaint):
        sources_of([path], [])
    with pytest.raises(BadRequest, match="no such file"):
        sources_of([], [tmp_path / "missing"])
    with pytest.raises(BadRequest, match="is a directory"):
        sources_of([tmp_path], [])


def test_sequences_of_a_text(tiny: Metadata, tmp_path: Path) -> None:
    """All but an incomplete last one, unless it is the only one. Refused: too few, and strange tokens."""
    path = tmp_path / "text.txt"
    path.write_text("One two three four five six seven eight nine ten. " * 30)
    whole = Text(tiny).encode_plain(path.read_text())

    def found(tokens: int, length: int) -> Sample:
        return sample(tiny, sources_of([path], []), tokens, length, 1 << 20)

    assert np.concatenate(found(1 << 20, 16).sequences).tolist() == whole[: len(whole) // 16 * 16]
    assert found(1 << 20, 1 << 15).sequences[0].tolist() == whole
    assert found(40, 16).tokens == 32
    path.write_text("One two")
    with pytest.raises(BadRequest, match="nothing to calibrate on"):
        found(100, 16)
    path.write_text("One two three four five six seven eight nine ten.")
    with pytest.raises(BadCheckpoint, match="the embedding has 3 rows"):
        sample(tiny, sources_of([path], []), 100, 16, 3)


def with_beginning(metadata: Metadata) -> Metadata:
    """The tokenizer, with a token that every text begins with, and without a chat template."""
    tokenizer = dict(metadata.tokenizer or {})
    first = next(t for t in tokenizer["added_tokens"] if t["content"] == "<|start|>")
    tokenizer["added_tokens"] = [first]
    single = [{"SpecialToken": {"id": "<|start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|start|>": {"id": "<|start|>", "ids": [first["id"]], "tokens": ["<|start|>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special,
    }
    return Metadata(metadata.config, tokenizer=tokenizer)


def test_every_sequence_begins_as_the_tokenizer_begins_a_text(tiny: Metadata) -> None:
    base = with_beginning(tiny)
    first = Text(base).special["<|start|>"]
    found = sample(base, mixture(), 1 << 20, 64, 1 << 20)
    assert len(found.sequences) > 100
    texts_only = [s for s in found.sequences if s[0] == first]
    assert len(texts_only) == len(found.sequences)
    assert all(first not in s[1:] for s in found.sequences[:20])


def test_conversations_of_the_user_need_a_chat_template(tiny: Metadata, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    with pytest.raises(BadCheckpoint, match="no chat template"):
        sample(with_beginning(tiny), sources_of([], [path]), 100, 16, 1 << 20)
