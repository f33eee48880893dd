"""Rendering in the harmony format."""

from datetime import date

from hypothesis import given, settings

from oss_tools.chat.chat_template import preamble_of
from oss_tools.chat.harmony import END, RETURN, Preamble, Special, plain_text, render
from oss_tools.chat.messages import Conversation, Message
from oss_tools.checkpoints import Metadata
from tests.chat.conversations import conversations, harmony_template

WEATHER = {
    "name": "weather",
    "description": "Looks up the weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "City"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        },
        "required": ["city"],
    },
}
CALL = Message("assistant", '{"city": "Paris"}', "commentary", "functions.weather", "json")
RESULT = Message("tool", "18", name="functions.weather")
TURN = (Message("user", "q"), Message("assistant", "hm", "analysis"), Message("assistant", "a", "final"))


def text_of(conversation: Conversation, preamble: Preamble | None = None, complete: bool = False) -> str:
    return plain_text(render(conversation, preamble, complete))


def test_a_small_model_gets_no_preamble() -> None:
    assert text_of(Conversation((Message("user", "Hi"),), effort="low")) == (
        "<|start|>system<|message|>Reasoning: low\n\n# Valid channels: analysis, commentary, final. "
        "Channel must be included for every message.<|end|><|start|>user<|message|>Hi<|end|><|start|>assistant"
    )


def test_tools_and_instructions_are_the_developer_s() -> None:
    conversation = Conversation((Message("user", "Hi"), CALL, RESULT), (WEATHER,), instructions="Be brief.")
    assert text_of(conversation).endswith(
        "every message.\nCalls to these tools must go to the commentary channel: 'functions'.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe brief.\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// Looks up the weather\ntype weather = (_: {\n// City\ncity: string,\n"
        'unit?: "celsius" | "fahrenheit", // default: celsius\n}) => any;\n\n} // namespace functions<|end|>'
        "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"
        '<|message|>{"city": "Paris"}<|call|><|start|>functions.weather to=assistant<|channel|>commentary<|message|>18<|end|>'
        "<|start|>assistant"
    )


def test_gpt_oss_is_told_who_it_is_and_calls_in_the_role() -> None:
    text = text_of(Conversation((Message("user", "Hi"), CALL)), Preamble.of_gpt_oss(date(2026, 5, 4)))
    assert "<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n" in text
    assert "\nCurrent date: 2026-05-04\n\nReasoning: medium\n\n#" in text
    assert "<|start|>assistant to=functions.weather<|channel|>commentary <|constrain|>json<|message|>" in text


def test_a_template_without_a_cutoff_means_no_preamble() -> None:
    assert preamble_of(Metadata({}, chat_template="{{ messages }}")) == Preamble()
    for template in (None, "Knowledge cutoff: 2024-06"):
        assert preamble_of(Metadata({}, chat_template=template)).identity


def test_old_analysis_is_dropped_for_a_completion_and_kept_in_the_answer() -> None:
    again = Conversation((*TURN, Message("user", "q2")))
    assert "hm" not in text_of(again)
    assert "hm" in text_of(Conversation((TURN[0], TURN[1], CALL, RESULT)))  # the turn goes on
    assert text_of(Conversation(TURN), complete=True).endswith("<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
                                                              "<|channel|>final<|message|>a<|return|>")  # fmt: skip
    trained = text_of(Conversation((*again.messages, *TURN[1:])), complete=True)
    assert trained.startswith(text_of(again) + "<|channel|>analysis")


def test_messages_with_the_opening_roles_stand_as_they_are() -> None:
    conversation = Conversation((Message("system", "S"), Message("user", "Hi")), instructions="D")
    assert text_of(conversation).startswith("<|start|>system<|message|>S<|end|><|start|>developer<|message|># Instructions")
    own = Conversation((Message("developer", "D"), Message("user", "Hi")), (WEATHER,))
    assert "weather" not in text_of(own)


@settings(deadline=None, max_examples=50)
@given(conversations())
def test_what_strangers_write_never_becomes_a_special_token(conversation: Conversation) -> None:
    template = harmony_template()
    tokens = template.encode(conversation)
    special = [piece for piece in render(conversation) if isinstance(piece, Special)]
    names = {number: name for name, number in template.text.special.items()}
    assert [names[token] for token in tokens if token in names] == special
    assert template.text.decode(tokens, skip_special=False) == template.render(conversation)


@settings(deadline=None, max_examples=50)
@given(conversations())
def test_a_training_text_is_its_prompt_and_its_answer(conversation: Conversation) -> None:
    whole = render(conversation, complete=True)
    messages = list(conversation.messages)
    while messages[-1].role == "assistant":
        messages.pop()
    prompt = render(Conversation(tuple(messages), conversation.tools, conversation.effort, conversation.instructions))
    asked = messages == list(conversation.messages)
    assert whole[: len(prompt)] == (prompt[:-2] if asked else prompt)
    assert whole[-1] == (END if asked else RETURN)
