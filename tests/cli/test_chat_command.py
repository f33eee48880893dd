"""`chat` and `generate` as a user calls them, with the embedded model and with one that says what it is told to."""

from __future__ import annotations

import ast
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.tools.choice import open_tools
from oss_tools.cli import generate
from oss_tools.cli._chat import Figures, Screen, Speaker
from oss_tools.cli._commands import Chat
from oss_tools.cli._options import model_path
from oss_tools.cli.main import app
from oss_tools.engine.sampling import Sampling
from oss_tools.errors import BadRequest, BadSource
from oss_tools.escapes import visible
from tests.chat.conversations import harmony_template
from tests.cli.terminals import on_terminal
from tests.interop.peers import smollm2

TEMPLATE = harmony_template()
THOUGHT = "<|channel|>analysis<|message|>I see.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.calculator <|constrain|>json<|message|>{"expression": "47 + 38"}<|call|>'
ANSWER = "<|channel|>final<|message|>It is 85.<|return|>"


def oss_tools(*arguments: object, status: int = 0, given: str = "") -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)], input=given)
    assert done.exit_code == status, (done.stderr, done.exception)
    return done


class Parrot(Speaker):
    """Says the completions it was given, one after the other; a KeyboardInterrupt among them is Ctrl-C at that point."""

    def __init__(self, *completions: Any) -> None:
        object.__setattr__(self, "left", list(completions))
        object.__setattr__(self, "prompts", [])

    def complete(self, tokens: list[int], figures: Figures) -> Iterator[int]:
        self.prompts.append(TEMPLATE.text.decode(tokens, skip_special=False))  # type: ignore[attr-defined]
        completion = self.left.pop(0)  # type: ignore[attr-defined]
        yield from TEMPLATE.text.encode(completion.removesuffix("^C"), special=False)
        if completion.endswith("^C"):
            raise KeyboardInterrupt


def chat(*completions: str, tools: str = "", rounds: int = 8) -> tuple[Chat, Parrot]:
    parrot = Parrot(*completions)
    return Chat(parrot, TEMPLATE, open_tools(tools), "medium", None, rounds, quiet=True), parrot


# ---- with the embedded model ----------------------------------------------------------------------------------------


def test_the_embedded_model_adds() -> None:
    command = [sys.executable, "-m", "oss_tools", "generate", "tiny", "What is 47 + 38?", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0
    assert done.stdout == "85\n"
    assert done.stderr == ""
    record = json.loads(oss_tools("generate", "tiny", "What is 47 + 38?", "-q", "--json").stdout)
    assert (record["text"], record["answered"], record["problems"]) == ("85", True, [])
    assert record["analysis"]


def test_reasoning_is_shown_apart() -> None:
    low, high = (
        oss_tools("generate", "tiny", "What is 47 + 38?", "-q", "--show-analysis", "--reasoning", effort)
        for effort in ("low", "high")
    )
    assert low.stdout == high.stdout == "85\n"
    assert len(high.stderr) > len(low.stderr) > 1


def test_an_answer_that_does_not_come_is_exit_status_1() -> None:
    done = oss_tools("generate", "tiny", "What is 47 + 38?", "-q", "-n", 3, status=1)
    assert done.stdout == ""
    assert done.stderr == "oss-tools: no final answer: the tokens ran out\n"


def test_the_embedded_model_calls_the_calculator_and_uses_its_result() -> None:
    done = oss_tools("chat", "tiny", "--tools", "calculator", "-q", given="What is 4831 * 27?\n/quit\n")
    assert "→ calculator {" in done.stderr
    assert "← 130437" in done.stderr
    assert "130437" in done.stdout


# ---- with a model that says what it is told to ----------------------------------------------------------------------


def test_a_turn_answers_on_stdout_and_thinks_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    talk, parrot = chat(THOUGHT + CALL, THOUGHT + ANSWER, ANSWER, tools="calculator")
    talk.take("What is 47 + 38?")
    out, err = capsys.readouterr()
    assert out == "It is 85.\n"
    assert err == 'I see.\n→ calculator {"expression": "47 + 38"}\n← 85\nI see.\n'
    talk.take("Really?")
    assert "It is 85.<|end|><|start|>user<|message|>Really?" in parrot.prompts[-1]  # type: ignore[attr-defined]


def test_a_malformed_answer_is_named_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    talk, _ = chat("85, I think", CALL, ANSWER)
    for question in ("What is 47 + 38?", "And now?"):
        talk.take(question)
        assert talk.conversation.messages == ()
    err = capsys.readouterr().err
    assert "the model's answer is malformed: a header is missing" in err
    assert "('85, I think')" in err
    assert "the model calls a tool that it was not offered ('functions.calculator')" in err
    talk.take("Hello?")
    assert len(talk.conversation.messages) == 2


def test_an_answer_that_is_cut_off_stays(capsys: pytest.CaptureFixture[str]) -> None:
    talk, _ = chat("<|channel|>final<|message|>It is 8")
    talk.take("What is 47 + 38?")
    assert [m.content for m in talk.conversation.messages] == ["What is 47 + 38?", "It is 8"]
    assert "the answer is cut off" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    talk, _ = chat(ANSWER, "<|channel|>final<|message|>Once upon^C", "<|channel|>analysis<|message|>hm^C", ANSWER)
    for line, count in (("One?", 2), ("Two?", 4), ("Three?", 4), ("Four?", 6)):
        talk.take(line)
        assert len(talk.conversation.messages) == count
    assert talk.conversation.messages[3].content == "Once upon"
    assert "stopped; the question is taken back" in capsys.readouterr().err


def test_endless_calls_end(capsys: pytest.CaptureFixture[str]) -> None:
    talk, parrot = chat(CALL, CALL, CALL, tools="calculator", rounds=2)
    talk.take("What is 47 + 38?")
    assert len(parrot.prompts) == 2  # type: ignore[attr-defined]
    assert "no answer after 2 rounds" in capsys.readouterr().err


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk, parrot = chat(ANSWER, ANSWER, tools="calculator")
    talk.take("/reasoning high")
    talk.take("What is 47 + 38?")
    assert "Reasoning: high" in parrot.prompts[0]  # type: ignore[attr-defined]
    path = tmp_path / "chat.json"
    for _ in range(2):
        talk.take(f"/save {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # a conversation is its author's
    saved = json.loads(path.read_text())
    assert [m["content"] for m in saved["messages"]] == ["What is 47 + 38?", "It is 85."]
    assert (saved["effort"], saved["tools"][0]["name"]) == ("high", "calculator")
    talk.take("/reset")
    assert talk.conversation.messages == ()
    for line in ("/save", f"/save {tmp_path}/no/such/folder", "/reasoning much", "/help", "/nonsense", ""):
        talk.take(line)
    err = capsys.readouterr().err
    for said in (
        "file exists",
        "needs the name",
        "no such file",
        "reasoning is high",
        "/reset begins",
        "no command /nonsense",
    ):
        assert said in err
    talk.take("/quit")
    assert talk.ended


def test_a_question_is_taken_back_or_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    talk, parrot = chat(ANSWER, ANSWER, ANSWER)
    object.__setattr__(parrot, "sampling", Sampling())
    for line in ("/undo", "/retry", "One?", "Two?"):
        talk.take(line)
    talk.take("/retry")
    assert [m.content for m in talk.conversation.messages if m.role == "user"] == ["One?", "Two?"]
    assert parrot.prompts[-1] == parrot.prompts[-2]  # type: ignore[attr-defined]
    talk.take("/undo")
    assert [m.content for m in talk.conversation.messages] == ["One?", "It is 85."]
    err = capsys.readouterr().err
    assert err.count("there is no question") == 2
    assert "the answer will be the same" in err
    assert "taken back: Two?" in err


def test_instructions_are_changed_in_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    talk, parrot = chat(ANSWER, ANSWER)
    for line in ("/system", "/system Speak like a sailor.", "One?", "/system -", "Two?"):
        talk.take(line)
    first, second = parrot.prompts  # type: ignore[attr-defined]
    assert "Speak like a sailor." in first
    assert "Speak like a sailor." not in second
    assert "instructions: none" in capsys.readouterr().err


def test_settings_are_changed_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Chat(Speaker(None, Sampling(), None), TEMPLATE, {}, "medium", None, 8, quiet=True)  # type: ignore[arg-type]
    for line in ("/set temperature 0.7", "/set top-k 40", "/set seed 3", "/set max_tokens 12"):
        talk.take(line)
    assert talk.speaker.sampling == Sampling(temperature=0.7, top_k=40, seed=3)
    assert talk.speaker.max_tokens == 12
    for line in ("/set seed none", "/set max_tokens none"):
        talk.take(line)
    assert (talk.speaker.sampling.seed, talk.speaker.max_tokens) == (None, None)
    before = talk.speaker
    for line in (
        "/set warmth 3",
        "/set temperature hot",
        "/set top_p 2",
        "/set seed -1",
        "/set max_tokens 0",
        "/set top_k 1.5",
    ):
        talk.take(line)
        assert talk.speaker == before
    err = capsys.readouterr().err
    for said in ("no setting named 'warmth'", "needs a number, not 'hot'", "top_p is 2.0, outside 0..1", "too small"):
        assert said in err


def test_a_saved_conversation_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk, _ = chat(THOUGHT + CALL, ANSWER, tools="calculator")
    for line in ("/system Be short.", "/reasoning low", "What is 47 + 38?", f"/save {tmp_path}/talk.json"):
        talk.take(line)
    assert "null" not in (tmp_path / "talk.json").read_text()
    other, parrot = chat(ANSWER, tools="calculator")
    for line in (f"/load {tmp_path}/talk.json", "And now?"):
        other.take(line)
    assert other.conversation.messages[:-2] == talk.conversation.messages
    assert (other.conversation.effort, other.conversation.instructions) == ("low", "Be short.")
    assert "What is 47 + 38?" in parrot.prompts[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON"),
        ("{}", "needs `messages`"),
        ('{"messages": [{"role": "king", "content": "x"}]}', "message 0: needs a role"),
        ('[{"role": "user", "content": 3}]', "message 0: needs a role"),
        ('[{"role": "user", "content": "x", "channel": 3}]', "message 0: `channel` must be a text"),
        ('[{"role": "user", "content": "x", "weapon": "y"}]', "unknown field 'weapon'"),
        ('{"messages": [], "effort": "much"}', "effort is 'much'"),
        ('{"messages": [], "instructions": 3}', "`instructions` must be a text"),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talk.json").write_text(content)
    talk, _ = chat(ANSWER)
    talk.take("One?")
    before = talk.conversation
    for line in (f"/load {tmp_path}/talk.json", f"/load {tmp_path}/none.json", "/load"):
        talk.take(line)
    assert talk.conversation == before
    assert said in capsys.readouterr().err


def test_a_command_that_is_misspelt_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    talk, _ = chat()
    talk.take("/rety")
    assert "did you mean /retry" in capsys.readouterr().err


def test_texts_of_several_lines_through_a_pipe() -> None:
    code = "from oss_tools.cli._lines import texts; print(list(texts()))"
    given = 'one\ntwo \\\nand on\n"""three\n  and more\n"""\n"""four"""\nlast'
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == ["one", "two \nand on", "three\n  and more", "four", "last"]


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_lines_are_kept_for_the_next_conversation(tmp_path: Path) -> None:
    code = "from oss_tools.cli._lines import texts; print(list(texts()), flush=True)"
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    on_terminal(program=code, typed=(("> ", "first question\n"), ("> ", "\x04")), env=environment)
    kept = tmp_path / "oss-tools" / "chat-history"
    assert "first question" in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    upwards = "\x1b[A\n"
    shown, status = on_terminal(program=code, typed=(("> ", upwards), ("> ", "\x04")), env=environment)
    assert (shown.strip().splitlines()[-1], status) == ("['first question']", 0)


def test_a_question_beyond_the_context_leaves_the_conversation_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    talk, parrot = chat(ANSWER)

    def refuse(tokens: list[int], figures: Figures) -> Iterator[int]:
        raise BadRequest("5000 tokens do not fit")

    object.__setattr__(parrot, "complete", refuse)
    talk.take("What is 47 + 38?")
    assert talk.conversation.messages == ()
    assert "5000 tokens do not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("completion", "stop", "printed", "status"),
    [
        (THOUGHT + ANSWER, (), "It is 85.\n", 0),
        (THOUGHT + ANSWER, ("8", "see"), "It is \n", 0),
        ("<|channel|>final<|message|>It is 8", (), "It is 8\n", 0),
        (THOUGHT.removesuffix("<|start|>assistant"), (), "", 1),
        ("85", (), "", 1),
        (CALL, (), "", 1),
    ],
)
def test_generate_prints_the_final_channel_or_fails(
    completion: str, stop: tuple[str, ...], printed: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    try:
        asked = Conversation((Message("user", "What is 47 + 38?"),), effort="low")
        generate.answer(Parrot(completion), TEMPLATE, asked, stop, Screen(False), True)
        found = 0
    except typer.Exit as leaving:
        found = leaving.exit_code
    out, err = capsys.readouterr()
    assert (out, found) == (printed, status)
    assert ("no final answer" in err) == bool(status)


def test_a_terminal_obeys_no_model() -> None:
    assert visible("a\x1b[2Jb\n\tc\x9b\u202e") == "a\\x1b[2Jb\n\tc\\x9b\\u202e"


# ---- with random weights, which say anything ------------------------------------------------------------------------


def test_what_random_weights_say_is_no_answer(tiny_gpt_oss: Path) -> None:
    done = oss_tools("generate", tiny_gpt_oss, "What is 47 + 38?", "-q", "-t", 1, "-n", 8, status=1)
    assert done.stdout == ""
    assert done.stderr.startswith("oss-tools: no final answer: ")
    record = json.loads(oss_tools("generate", tiny_gpt_oss, "Hi", "-q", "-t", 1, "-n", 8, "--json", status=1).stdout)
    assert (record["text"], record["answered"], record["tokens"]) == ("", False, 8)
    assert record["problems"]
    assert oss_tools("generate", tiny_gpt_oss, "Hi", "-q", "-t", 1, "-n", 8, "--raw").stdout


def test_a_conversation_with_random_weights_goes_on(tiny_gpt_oss: Path) -> None:
    given = "What is 47 + 38?\n/help\nHi\n"
    done = oss_tools("chat", tiny_gpt_oss, "-q", "-t", 1, "-n", 8, "--tools", "calculator", given=given)
    assert done.stderr.count("the question is taken back") == 2
    assert "tools: calculator" in done.stderr


# ---- what MODEL means, and other refusals ---------------------------------------------------------------------------


def test_tiny_is_the_embedded_model_and_a_path_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "other/tiny"):
        Path(name).mkdir(parents=True)
    assert model_path("./tiny") == Path("tiny")
    assert model_path("other/tiny") == Path("other/tiny")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("oss_tools.resources.resource", lambda relative: tmp_path)
    assert model_path("tiny") == tmp_path
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadSource, match=r"\./tiny"):
        model_path("tiny")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--reasoning", "much"], "is not one of none, low, medium, high"),
        (["--tools", "abacus"], "no tool named 'abacus'"),
        (["--tools", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(options: list[str], said: str, tmp_path: Path) -> None:
    done = oss_tools("chat", tmp_path, *options, status=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_without_a_template_cannot_chat(tiny_llama: Path) -> None:
    done = oss_tools("chat", tiny_llama, "-q", status=2, given="Hello\n")
    assert "no chat template" in done.stderr


@pytest.mark.peers
def test_a_template_without_tools_refuses_them() -> None:
    done = oss_tools("chat", smollm2(), "-q", "--tools", "calculator", status=2, given="Hello\n")
    assert "no place for tools" in done.stderr


def test_chat_is_quick_to_import() -> None:
    heavy = ("numpy", "numba", "yaml", "tokenizers")
    code = f"import sys, oss_tools.cli.chat, oss_tools.cli.generate; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
