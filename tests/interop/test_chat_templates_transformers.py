"""Chat templates beside transformers' own rendering: in the manner of public models, and public ones that packages carry."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from oss_tools.chat import template
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.plain import plain_messages, plain_tools
from oss_tools.checkpoints import Metadata, templates
from oss_tools.errors import BadCheckpoint

pytestmark = pytest.mark.peers
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "sep_token": "<sep>"}

LLAMA = """{{- bos_token }}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "[system]\\n" }}{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}{{- system_message }}{{- eos_token }}
{%- if tools_in_user_message and not tools is none %}
    {%- set first = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {{- '[user]\\n' }}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{{- first + eos_token }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '[' + message['role'] + ']\\n'+ message['content'] | trim + eos_token }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("This model takes one call at once!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- else %}
        {{- "[ipython]\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]\\n\\n' }}{%- endif %}
"""
QWEN = """{%- if tools %}{{- 'system\\n' }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(
        message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<think>' + reasoning_content.strip('\\n') + '</think>' }}
        {%- endif %}
        {{- message.content.lstrip('\\n') }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>' + tool_call.name }}{{- tool_call.arguments | tojson(ensure_ascii=True) }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- 'user' }}{%- endif %}
        {{- '<tool_response>' }}{{- message.content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<end>\\n' }}{%- endif %}
    {%- else %}{{ message.role }}: {{ message.content }}
    {%- endif %}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{%- endif %}
"""
MISTRAL = """{{ bos_token }}{%- set ns = namespace(index=0) %}
{%- for m in messages if m.role != 'system' %}
    {%- if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}[TOOL_CALLS][
        {%- for call in m.tool_calls %}
            {%- set out = call.function|tojson(sort_keys=true) %}{{- out[:-1] }}
            {%- if not call.id is defined or call.id|length != 9 %}{{- raise_exception("ids have a length of 9!") }}{%- endif %}
            {{- ', "id": "' + call.id + '"}' }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]{"content": ' + m.content|string + ', "call_id": "' + m.tool_call_id + '"}' }}
    {%- else %}{{ m.content + eos_token }}{%- endif %}
{%- endfor %}"""
COMMAND = """{%- macro described(tool) -%}{{ tool.function.name }}: {{ tool.function.parameters | tojson(separators=(',', ':')) }}
{% endmacro -%}
{%- for tool in tools or [] %}{{ described(tool) }}{% endfor -%}
{% if documents is defined and documents is none %}no documents{% endif %}
{% for m in messages %}{% if loop.index0 > 6 %}{% break %}{% endif %}{% if not m.content %}{% continue %}{% endif %}
{{ '%-9s|' % m.role }}{{ m.content | replace('\\n', ' ') | upper }}{% endfor %}{{ sep_token }}{{ mask_token }}"""
SMOL = """{%- for message in messages %}{%- if message.role == "assistant" %}{% generation %}
{{- "assistant: " ~ message.content | default("", true) ~ eos_token }}{% endgeneration %}{% else %}
{{- message.role ~ ": " ~ (message.content.split("</think>") | last) ~ "\\n" }}{% endif %}{%- endfor %}
    {% if add_generation_prompt %}
        assistant on {{ strftime_now("%Y-%m-%d") }}
    {%- endif %}"""
PYTHON_ONLY = "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}{{ dict(a=1) }}"
TEMPLATES = {
    "llama": LLAMA,
    "qwen": QWEN,
    "mistral": MISTRAL,
    "command": COMMAND,
    "smol": SMOL,
    "filters": PYTHON_ONLY,
}

TOOL = {
    "name": "weather",
    "description": "of <a> & 'b'",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ASKED = Message("user", " Weather in München?\n")
CALLS = (
    ASKED,
    Message("assistant", "Two cities", "analysis"),
    Message("assistant", '{"city": "München"}', "commentary", "functions.weather", "json"),
    Message("tool", "18", name="functions.weather"),
)
CONVERSATIONS = {
    "one turn": Conversation((ASKED,)),
    "instructions": Conversation((ASKED, Message("assistant", "Mild.", "final"), ASKED), instructions="Be brief."),
    "tools": Conversation((ASKED,), (TOOL,)),
    "a call": Conversation(CALLS, (TOOL,), instructions="Be brief."),
    "two calls": Conversation((*CALLS[:3], CALLS[2], CALLS[3], CALLS[3]), (TOOL,)),
}


def theirs(source: str, messages: Any, tools: Any) -> str:
    """What transformers renders; "refused" where the template refuses the conversation."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=True, **SPECIAL
        )
    except jinja2.exceptions.TemplateError:
        return "refused"
    return str(rendered[0])


def ours(source: str, messages: Any, tools: Any) -> str:
    try:
        return template.render(Metadata({}, chat_template=source, tokenizer_config=dict(SPECIAL)), messages, tools)
    except BadCheckpoint:
        return "refused"


def compare(source: str, conversation: Conversation) -> str:
    messages, tools = plain_messages(conversation), plain_tools(conversation)
    before = datetime.now().date()
    rendered, expected = ours(source, messages, tools), theirs(source, messages, tools)
    if before == datetime.now().date():
        assert rendered == expected
    return expected


@pytest.mark.parametrize("about", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_theirs(name: str, about: str) -> None:
    expected = compare(TEMPLATES[name], CONVERSATIONS[about])
    assert (expected == "refused") == ((name, about) == ("llama", "two calls"))


def test_public_templates(peer_templates: dict[str, str]) -> None:
    assert len(peer_templates) == 5
    for source in peer_templates.values():
        for conversation in CONVERSATIONS.values():
            compare(source, conversation)


@pytest.fixture(scope="module")
def peer_templates() -> dict[str, str]:
    """Templates of ChatML, Mistral, Mixtral and Llama 3 as llama-cpp-python has them, and SmolLM2's own."""
    from llama_cpp import llama_chat_format

    from oss_tools.models import open_checkpoint
    from tests.interop.peers import smollm2

    found = {name: value for name, value in vars(llama_chat_format).items() if name.endswith("_CHAT_TEMPLATE")}
    with open_checkpoint(smollm2()) as checkpoint:
        return found | {"SmolLM2": templates.by_name(checkpoint.metadata())["default"]}


@pytest.mark.parametrize("names", [("default",), ("default", "tool_use"), ("rag", "tool_use"), ("rag",)])
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": TOOL}]])
def test_the_template_of_a_name_is_the_one_that_they_take(names: tuple[str, ...], tools: Any) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    named = {name: f"{name}!" for name in names}
    peer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), chat_template=named)
    metadata = Metadata({}, **templates.fields(named))
    try:
        expected = peer.get_chat_template(tools=tools)
    except ValueError:
        with pytest.raises(BadCheckpoint, match=f"only {', '.join(sorted(names))}"):
            template.source_of(metadata, tools is not None)
    else:
        assert template.source_of(metadata, tools is not None) == expected
