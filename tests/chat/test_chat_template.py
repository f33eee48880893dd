"""One interface: harmony and Jinja templates, and answers with tags."""

import copy
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.chat.chat_template import HarmonyTemplate, JinjaTemplate, chat_template, has_chat_template
from oss_tools.chat.completion import SLIPS, Completion, Problem
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.tags import TagParser
from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource
from oss_tools.tiny import tool_use
from tests.chat.conversations import HARMONY

TEMPLATE = """{% for m in messages %}<s>{{ m.role }}:{{ m.content | trim }}{% if m.tool_calls is defined %}{{
m.tool_calls[0].function | tojson }}{% endif %}{% if m.reasoning_content is defined %}({{ m.reasoning_content }}){% endif
%}</s>{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}<s>assistant:"""
TOOL = {"name": "weather", "description": "of </s> a city", "parameters": {"type": "object", "properties": {}}}
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'


def llama(template: str | None = TEMPLATE) -> tuple[Metadata, Text]:
    tokenizer = byte_tokenizer("llama", 400)
    assert tokenizer
    metadata = Metadata({}, tokenizer=tokenizer.content, chat_template=template, tokenizer_config=tokenizer.config)
    return metadata, Text(metadata)


METADATA, TEXT = llama()


def test_the_embedded_model_s_template_says_what_is_rendered() -> None:
    """As transformers and llama.cpp would render it, on questions with tools and their answers."""
    with open_checkpoint(resource("tiny/checkpoint")) as checkpoint:
        metadata = checkpoint.metadata()
    text = Text(metadata)
    harmony, own = chat_template(metadata, text), JinjaTemplate(text, metadata)
    assert isinstance(harmony, HarmonyTemplate)
    for item in islice(tool_use.items(Random(1), "test"), 100):
        asked = list(item.conversation.messages)
        while asked[-1].role == "assistant":
            asked.pop()
        conversation = replace(item.conversation, messages=tuple(asked))
        assert harmony.render(conversation) == own.render(conversation)


def test_harmony_s_tokens_decide() -> None:
    assert isinstance(chat_template(HARMONY, Text(HARMONY)), HarmonyTemplate)
    assert isinstance(chat_template(METADATA, TEXT), JinjaTemplate)
    metadata, text = llama(None)
    assert not has_chat_template(metadata)
    assert not has_chat_template(metadata, text)
    assert has_chat_template(HARMONY)
    assert has_chat_template(Metadata({}), Text(HARMONY))
    with pytest.raises(BadCheckpoint, match="no chat template"):
        chat_template(metadata, text)


def test_a_jinja_conversation_has_all_that_was_said() -> None:
    said = (
        Message("user", "Weather?"),
        Message("assistant", "hm", "analysis"),
        Message("assistant", '{"city": "Paris"}', "commentary", "functions.weather", "json"),
        Message("tool", "18", name="functions.weather"),
    )
    template = chat_template(METADATA, TEXT)
    assert template.takes_tools
    text = template.render(Conversation(said, (TOOL,), instructions="Be brief."))
    assert text.startswith("<s>system:Be brief.</s><s>user:Weather?</s><s>assistant:{")
    assert '{"name": "weather", "arguments": {"city": "Paris"}}(hm)</s><s>tool:18</s>[{"type": "function"' in text


def test_special_tokens_in_messages_stay_letters() -> None:
    template = chat_template(METADATA, TEXT)
    conversation = Conversation((Message("user", " Is <s> or </s> \U000f0000 special? <s> "),), (TOOL,))
    tokens = template.encode(conversation)
    assert TEXT.decode(tokens, skip_special=False) == template.render(conversation)
    names = {number: name for name, number in TEXT.special.items()}
    assert [names[token] for token in tokens if token in names] == ["<s>", "</s>", "<s>"]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.sampled_from(["a", " ", "<s>", "</s>", "\n", "é", "<unk>"]), max_size=6).map("".join), max_size=3)
)
def test_what_a_user_writes_never_becomes_a_special_token(contents: list[str]) -> None:
    template = chat_template(METADATA, TEXT)
    tokens = template.encode(Conversation(tuple(Message("user", content) for content in contents)))
    assert sum(token in TEXT.special.values() for token in tokens) == 2 * len(contents) + 1


def read(completion: str, tools: tuple[str, ...] = ("weather",), thinking: bool = False) -> tuple[Completion, list[str]]:
    """The completion, and what is shown of it by channel."""
    parser, deltas = TagParser(TEXT, tools, thinking), []
    for token in TEXT.encode(completion, special=False):
        deltas += parser.add(token)
    rest, found = parser.finish()
    return found, [f"{delta.channel}: {delta.text}" for delta in deltas + rest]


def test_plain_text_is_the_final_answer() -> None:
    found, shown = read("It is <think>85</think>.</s>")
    assert (found.final, found.findings) == ("It is <think>85</think>.", ())
    assert "".join(text.removeprefix("final: ") for text in shown) == found.final


@pytest.mark.parametrize("thinking", [False, True])
def test_reasoning_is_apart(thinking: bool) -> None:
    completion = "47 + 38\n</think>\n\n85</s>"
    found, shown = read(completion if thinking else f"<think>\n{completion}", thinking=thinking)
    assert (found.analysis, found.final) == ("47 + 38", "85")
    assert "".join(text.removeprefix("final: ") for text in shown if text.startswith("final")) == "85"


@pytest.mark.parametrize(
    "completion",
    [
        f"<tool_call>\n{CALL}\n</tool_call></s>",
        f"<think>hm</think>\n<tool_call>{CALL}</tool_call></s>",
        CALL + "</s>",
        CALL.replace("arguments", "parameters") + "</s>",
        CALL.replace('{"city": "Paris"}', '"{\\"city\\": \\"Paris\\"}"') + "</s>",
    ],
)
def test_calls_in_the_common_forms(completion: str) -> None:
    found, shown = read(completion)
    assert [(call.name, call.arguments) for call in found.calls] == [("weather", {"city": "Paris"})]
    assert (found.messages[-1].recipient, found.messages[-1].content) == ("functions.weather", '{"city": "Paris"}')
    assert not found.findings
    assert not any(text.startswith("final") for text in shown)


def test_two_calls_at_once() -> None:
    assert len(read(f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call></s>")[0].calls) == 2


A, B = '{"name": "a", "parameters": {}}', '{"name": "b", "arguments": {"x": ";"}}'
ONE, TWO = [("a", {})], [("a", {}), ("b", {"x": ";"})]


@pytest.mark.parametrize(
    ("completion", "calls", "problems"),
    [
        (f"{A}; {B}", TWO, []),
        (f"{A}\n{B}", TWO, []),
        (f"[{A}, {B}]", TWO, []),
        (f" \n[{A},\n {B}] ", TWO, []),
        (f"```json\n{A}\n```", ONE, []),
        (f"{A}\n\nShall I go on?", ONE, [Problem.STRAY_TEXT]),
        (f"I look it up.\n\n{A}", ONE, [Problem.STRAY_TEXT]),
        (f'{A}; {{"name": "b", "param', ONE, [Problem.CUT_JSON]),
        (f"{A}; {B.replace('b', 'c', 1)}", ONE, [Problem.UNKNOWN_TOOL]),
        ('[a(), b(x=";")]', TWO, []),
        ('[a(), b(x=os.system("ls"))]', [], []),
        ('[a(), c(x=";")]', [], []),
        ("[1] says so, and (2)", [], []),
        (f"An example is {A} as you see", [], []),
        (f"This calls c:\n{A.replace('a', 'c', 1)}", [], []),
        (f"<tool_call>{A}</s>", ONE, [Problem.OPEN_TAG]),
        (f"<tool_call>{A}\n{B}</tool_call>", TWO, []),
        (f"Wait.<tool_call>{A}</tool_call>", ONE, []),
        (
            '<tool_call>{"name": "b", "arguments": {"x": "</tool_call> \\" </tool_call>"}}</tool_call>',
            [("b", {"x": '</tool_call> " </tool_call>'})],
            [],
        ),
    ],
)
def test_calls_with_much_around_them(
    completion: str, calls: list[tuple[str, dict[str, str]]], problems: list[Problem]
) -> None:
    """What vLLM's parsers (llama3_json, hermes, mistral, pythonic) find in such answers, with what is wrong beside it."""
    found, shown = read(completion.removesuffix("</s>") + "</s>", tools=("a", "b"))
    assert [(call.name, call.arguments) for call in found.calls] == calls
    assert [finding.problem for finding in found.findings] == problems
    if not calls:
        assert "".join(text.removeprefix("final: ") for text in shown) == found.final == completion
    assert found.to_carry_out == (found.calls if set(problems) <= SLIPS else ())


def with_special(*names: str) -> Text:
    """The vocabulary with some of its unused tokens under these names."""
    content = copy.deepcopy(METADATA.tokenizer)
    assert content
    unused = [token for token in content["model"]["vocab"] if token.startswith("<unused_")]
    for token, name in zip(unused, names, strict=False):
        number = content["model"]["vocab"].pop(token)
        content["model"]["vocab"][name] = number
        content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": name})
    return Text(replace(METADATA, tokenizer=content))


@pytest.mark.parametrize(
    ("completion", "calls"),
    [
        (f"<|python_tag|>{A}", ONE),
        (f"<|python_tag|>{A}; {B}", TWO),
        (f"<|python_tag|>{A}<|python_tag|>{B}", TWO),
        ('<|python_tag|>b.call(x=";")', TWO[1:]),
        ("<|python_tag|>print(6 * 7)", [("python", {"code": "print(6 * 7)"})]),
        (f"[TOOL_CALLS] [{A}, {B}]", TWO),
        ('[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b[CALL_ID]c4LLc4LL1[ARGS]{"x": ";"}', TWO),
        ("[TOOL_CALLS]a{}", ONE),
        (f"<tool_call>{A}</tool_call>", ONE),
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_tags_are_seen_whether_or_not_they_are_special_tokens(
    completion: str, calls: list[tuple[str, dict[str, str]]], special: bool
) -> None:
    tags = ("<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<tool_call>", "</tool_call>")
    text = with_special(*tags) if special else TEXT
    assert (set(tags) <= set(text.special)) == special
    found = TagParser(text, ("a", "b", "python")).read(text.encode(completion + "</s>", special=False))
    assert ([(call.name, call.arguments) for call in found.calls], found.findings) == (calls, ())


def test_without_tools_there_are_no_calls() -> None:
    found, _ = read(CALL + "</s>", tools=())
    assert found.final == CALL
    assert read('{"answer": 85}</s>')[0].final == '{"answer": 85}'


@pytest.mark.parametrize(
    ("completion", "problems"),
    [
        ("", [Problem.MISSING_END]),
        ("</s>", [Problem.NO_ANSWER]),
        ("<think>hm</think></s>", [Problem.NO_ANSWER]),
        ("It is 8", [Problem.MISSING_END]),
        (f"<tool_call>{CALL}</s>", [Problem.OPEN_TAG]),
        ('<tool_call>{"name": "wea</tool_call></s>', [Problem.CUT_JSON]),
        ("<tool_call>weather</tool_call></s>", [Problem.BROKEN_JSON]),
        ('<tool_call>{"name": 7}</tool_call></s>', [Problem.BROKEN_JSON]),
        ('{"name": "weather", "parameters": </s>', [Problem.CUT_JSON]),
        (f"<tool_call>{CALL.replace('weather', 'whether')}</tool_call></s>", [Problem.UNKNOWN_TOOL]),
    ],
)
def test_what_is_broken_is_named(completion: str, problems: list[Problem]) -> None:
    found, _ = read(completion)
    assert [finding.problem for finding in found.findings] == problems
    assert found.final is None


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(st.integers(0, 420), st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "{"]))
    )
)
def test_random_answers_never_crash(parts: list[int | str]) -> None:
    tokens = [t for part in parts for t in ([part] if isinstance(part, int) else TEXT.encode(part, special=False))]
    found = TagParser(TEXT, ("weather",)).read(tokens)
    assert found.final is None or not found.findings
