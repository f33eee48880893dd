"""Answers of many families, good and broken, as their published parsers read them.

`transcripts/FAMILY.json` names the parser (of vLLM, whose tool parser reads what its reasoning parser leaves). Where an answer
is read otherwise here, `published` has what that parser gave, and `why` the reason; all others it reads as is said there.
`tools.json` are the tools that were offered.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oss_tools.chat.chat_template import chat_template
from oss_tools.chat.completion import Delta
from oss_tools.chat.dialects import Dialect, dialect
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.tags import TagParser
from oss_tools.checkpoints import Metadata
from oss_tools.engine.text import Text
from tests.chat.test_chat_template import METADATA

FOLDER = Path(__file__).parent / "transcripts"
TOOLS = json.loads((FOLDER / "tools.json").read_text())
FAMILIES = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json")) if file.stem != "tools"}
# How a family's template ends the prompt, in the manner of the published ones
TEMPLATE = "{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{{# {marks} #}}{end}"


def metadata(marks: str, end: str, added: tuple[str, ...] = (), special: bool = True) -> Metadata:
    """A vocabulary in which these marks are tokens, and a template that knows the family's."""
    content = copy.deepcopy(METADATA.tokenizer)
    assert content
    unused = [token for token in content["model"]["vocab"] if token.startswith("<unused_")]
    for token, name in zip(unused, added, strict=False):
        number = content["model"]["vocab"].pop(token)
        content["model"]["vocab"][name] = number
        content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": name, "special": special})
    return replace(METADATA, tokenizer=content, chat_template=TEMPLATE.format(marks=marks, end=end))


def read(text: str, thinking: bool, given: Metadata) -> tuple[dict[str, Any], list[Delta]]:
    """What an answer says, as the transcripts have it, and what was shown while it came."""
    vocabulary = Text(given)
    conversation = Conversation((Message("user", "Hi."),), tuple(TOOLS))
    parser, deltas = chat_template(given, vocabulary).parser(conversation), []
    for token in vocabulary.encode(text + "</s>", special=False):
        deltas += parser.add(token)
    rest, completion = parser.finish()
    calls = [
        [message.recipient.removeprefix("functions."), json.loads(message.content)]
        for message in completion.messages
        if message.recipient
    ]
    found = {
        "calls": calls,
        "answer": completion.shown or "",
        "reasoning": completion.analysis,
        "problems": [finding.problem.value for finding in completion.findings],
    }
    return found, deltas + rest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", ["letters", "special", "added"])
def test_answers_are_read_as_the_published_parsers_read_them(family: str, tokens: str) -> None:
    """Whether the marks are letters, special tokens or added tokens that are not special."""
    told = FAMILIES[family]
    names = () if tokens == "letters" else [n for n in dialect([told["marks"]]).names if n != "<function="]
    given = [metadata(told["marks"], end, tuple(names), tokens == "special") for end in ("", "<think>")]
    assert len(told["transcripts"]) >= 40
    for transcript in told["transcripts"]:
        text, thinking = transcript["text"], transcript.get("thinking", False)
        expected = {
            "calls": transcript["calls"],
            "answer": transcript.get("answer", ""),
            "reasoning": transcript.get("reasoning", ""),
            "problems": transcript.get("problems", []),
        }
        found, deltas = read(text, thinking, given[thinking])
        assert found == expected, text
        assert ("published" in transcript) == ("why" in transcript)
        final = "".join(delta.text for delta in deltas if delta.channel == "final").strip()
        assert not any(mark in final for mark in KNOWN.names if mark not in found["answer"]), text
        assert "".join(d.text for d in deltas if d.channel == "analysis").strip() == found["reasoning"], text


KNOWN: Dialect = dialect(json.dumps(told["marks"], ensure_ascii=False) for told in FAMILIES.values())


def test_no_half_mark_is_shown() -> None:
    """Of an answer that comes a letter at a time, nothing that may become a mark."""
    text = Text(METADATA)
    for family, told in FAMILIES.items():
        for transcript in told["transcripts"]:
            parser = TagParser(text, ("weather",), marks=dialect([told["marks"]]))
            for token in text.encode(transcript["text"], special=False):
                for delta in parser.add(token):
                    ends = [m[:n] for m in dialect([told["marks"]]).calls for n in range(2, len(m))]
                    assert delta.channel != "final" or not delta.text.endswith(tuple(ends)), (family, transcript["text"])
