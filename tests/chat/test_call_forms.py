"""What templates want of messages with calls, found out by trying; templates written in the manner of published ones."""

import pytest

from oss_tools.chat.chat_template import chat_template
from oss_tools.chat.messages import Conversation, Message
from oss_tools.checkpoints import Metadata
from oss_tools.engine.text import Text
from tests.chat.test_chat_template import METADATA

WEATHER = {
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
NAME = "functions.weather"
ASKED = Message("user", "Weather?")
PARIS = Message("assistant", '{"city": "Paris"}', "commentary", NAME, "json")
ROME = Message("assistant", '{"city": "Rome"}', "commentary", NAME, "json")
HOT, COLD = Message("tool", "hot", name=NAME), Message("tool", "cold", name=NAME)

LIKE_QWEN = """{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}<call>{"name": "{{ c.function.name
}}", "arguments": {{ c.function.arguments | tojson }}}</call>{% endfor %}|{% endfor %}assistant:"""
LIKE_DEEPSEEK_V3 = """{% for m in messages %}{% if m['role'] == 'user' %}U:{{ m['content'] }}{% endif %}{% if m['role'] ==
'assistant' and m['content'] is none %}A:{% for c in m['tool_calls'] %}{{ '[' + c['type'] + ' ' + c['function']['name'] + ' ' +
c['function']['arguments'] + ']' }}{% endfor %}|{% endif %}{% if m['role'] == 'assistant' and m['content'] is not none %}{{ 'A:' +
m['content'] + '|' }}{% endif %}{% if m['role'] == 'tool' %}{{ 'T:' + m['content'] }}{% endif %}{% endfor %}A:"""
LIKE_R1 = """{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% endif %}{% if m.role == 'assistant' and
m.tool_calls %}A:{% for c in m.tool_calls %}{{ '[' + c.function.name + ' ' + c.function.arguments + ']' }}{% endfor %}|{% endif
%}{% if m.role == 'assistant' and m.content is not none %}{{ 'A:' + m.content + '|' }}{% endif %}{% if m.role == 'tool' %}{{ 'T:'
+ m.content }}{% endif %}{% endfor %}A:"""
LIKE_LLAMA = """{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception("This model
only supports single tool-calls at once!") }}{% endif %}{% set c = m.tool_calls[0].function %}assistant:{"name": "{{ c.name
}}", "parameters": {{ c.arguments | tojson }}}|{% elif m.role == 'tool' %}ipython:{{ m.content | tojson }}|{% else %}{{ m.role
}}:{{ m.content }}|{% endif %}{% endfor %}assistant:"""


def rendered(template: str, *messages: Message) -> str:
    metadata = Metadata({}, tokenizer=METADATA.tokenizer, chat_template=template, tokenizer_config=METADATA.tokenizer_config)
    return chat_template(metadata, Text(metadata)).render(Conversation(messages, (WEATHER,)))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            LIKE_QWEN,
            'user:Weather?|assistant:<call>{"name": "weather", "arguments": {"city": "Paris"}}</call><call>{"name": "weather", '
            '"arguments": {"city": "Rome"}}</call>|tool:hot|tool:cold|assistant:',
        ),
        (
            LIKE_DEEPSEEK_V3,
            'U:Weather?A:[function weather {"city": "Paris"}][function weather {"city": "Rome"}]|T:hotT:coldA:',
        ),
        (LIKE_R1, 'U:Weather?A:[weather {"city": "Paris"}][weather {"city": "Rome"}]|T:hotT:coldA:'),
        (
            LIKE_LLAMA,
            'user:Weather?|assistant:{"name": "weather", "parameters": {"city": "Paris"}}|ipython:"hot"|'
            'assistant:{"name": "weather", "parameters": {"city": "Rome"}}|ipython:"cold"|assistant:',
        ),
    ],
)
def test_two_calls_and_their_results(template: str, expected: str) -> None:
    assert rendered(template, ASKED, PARIS, ROME, HOT, COLD) == expected


@pytest.mark.parametrize("template", [LIKE_DEEPSEEK_V3, LIKE_R1])
def test_text_before_a_call_is_a_message_of_its_own_where_a_message_has_either(template: str) -> None:
    found = rendered(template, ASKED, Message("assistant", "I look.", "final"), PARIS, HOT)
    assert found.startswith("U:Weather?A:I look.|A:[")
    assert found.endswith('weather {"city": "Paris"}]|T:hotA:')


def test_arguments_that_are_no_json_stay_the_text_that_they_are() -> None:
    broken = Message("assistant", '{"city": ', "commentary", NAME, "json")
    assert '[weather {"city": ]' in rendered(LIKE_R1, ASKED, broken, HOT)
