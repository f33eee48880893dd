"""Talk with a model in the terminal, with tools if wanted.

Answers go to stdout as they come; reasoning and tool calls to stderr, dimmed on a terminal. Ctrl-C stops an answer and keeps
the conversation; Ctrl-D or /quit ends it. /help lists the commands. Lines may also come through a pipe, one question each.

Tools: calculator; python, which runs the model's code in a process without a network, other programs or write access
outside of its own folder (Linux); browser:FOLDER and browser:ADDRESS, which search a folder's texts or by a SearXNG; a YAML file
that declares commands, which run with your rights, or a browser; a JSON file of MCP servers, which are started.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._chat import Figures, Reasoning, Screen, Speaker, figures_line
from oss_tools.cli._engine import Activations, BackendName, Context, Device, Load, Memory, Model, Speculate, Threads, loaded
from oss_tools.cli._options import QuietFlag
from oss_tools.cli._output import remark
from oss_tools.escapes import json_text

if TYPE_CHECKING:
    from oss_tools.chat.chat_template import ChatTemplate
    from oss_tools.chat.completion import Delta
    from oss_tools.chat.loop import Transcript
    from oss_tools.chat.messages import Conversation, Message
    from oss_tools.chat.tools.base import Tool
    from oss_tools.checkpoints import Metadata

EXAMPLES = """
oss-tools chat tiny --tools calculator
oss-tools chat gpt-oss-20b/ --reasoning high --tools python,tools.yaml
oss-tools chat gpt-oss-20b/ --tools browser:handbook/
oss-tools chat tiny -q < questions.txt
"""

PROMPT = "> "


def run(
    model: Model,
    reasoning: Reasoning = "medium",
    system: Annotated[str | None, typer.Option("--system", help="Instructions that stand before the conversation.")] = None,
    tools: Annotated[
        str, typer.Option("--tools", metavar="LIST", help="calculator, python, browser:FOLDER, YAML, mcp.json, by commas.")
    ] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="The most calls of tools for one answer.")] = 8,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", "-n", min=1, help="The most tokens of an answer. [default: what the context has room for]",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Only the likeliest that reach this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The same seed draws the same text.")] = None,
    threads: Threads = 0,
    device: Device = "cpu",
    backend: BackendName = "numba",
    activations: Activations = "int8",
    load: Load = "mapped",
    memory: Memory = None,
    speculate: Speculate = True,
    context: Context = None,
    quiet: QuietFlag = False,
) -> None:  # fmt: skip
    from oss_tools.chat.chat_template import chat_template, has_chat_template, takes_tools
    from oss_tools.chat.tools.choice import open_tools
    from oss_tools.engine.sampling import Sampling
    from oss_tools.errors import BadCheckpoint, BadRequest

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    opened = open_tools(tools)

    def check(metadata: Metadata) -> None:
        if not has_chat_template(metadata):
            raise BadCheckpoint(f"{model}: has no chat template; `generate --raw` continues a plain text")
        if opened and not takes_tools(metadata):
            raise BadRequest(f"{model}: its chat template has no place for tools; leave out --tools")

    with loaded(
        model,
        device=device,
        backend=backend,
        threads=threads,
        context=context,
        activations=activations,
        load=load,
        memory=memory,
        speculate=speculate,
        quiet=quiet,
        check=check,
    ) as engine:
        template = chat_template(engine.metadata, engine.text)
        chat = Chat(Speaker(engine, sampling, max_tokens), template, opened, reasoning, system, rounds, quiet)
        if sys.stdin.isatty() and not quiet:
            remark("/help lists the commands, Ctrl-D ends")
        for line in lines():
            chat.take(line)
            if chat.ended:
                return


def lines() -> Iterator[str]:
    """What the user types, with line editing and history on a terminal, or what comes through a pipe."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (input() uses it once it is imported)
    while True:
        try:
            yield input(PROMPT if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:  # drops the line being typed
            print(file=sys.stderr)


class Chat:
    """A conversation and what may be done with it.

    Attributes:
        conversation: what has been said, tools, effort, instructions.
        ended: whether the user has said /quit.
    """

    def __init__(
        self,
        speaker: Speaker,
        template: ChatTemplate,
        tools: dict[str, Tool],
        effort: Any,
        instructions: str | None,
        rounds: int,
        quiet: bool,
    ) -> None:
        from oss_tools.chat.messages import Conversation

        self._speaker, self._template, self._tools = speaker, template, tools
        self._rounds, self._quiet = rounds, quiet
        schemas = tuple(tool.schema for tool in tools.values())
        self.conversation = Conversation((), schemas, effort, instructions)
        self.ended = False

    def take(self, line: str) -> None:
        """A line of the user's: a command, a question, or nothing. What fails is said, and the conversation goes on."""
        from oss_tools.errors import OssToolsError

        line = line.strip()
        try:
            if line.startswith("/"):
                self.command(line)
            elif line:
                self.ask(line)
        except OssToolsError as error:
            remark(str(error))

    def ask(self, question: str) -> None:
        """One turn. Of an answer that is stopped, what the user has seen stays; if that is nothing, the question goes."""
        from oss_tools.chat.loop import converse
        from oss_tools.chat.messages import Message

        before, screen, figures = self.conversation, Screen(show_analysis=True), Figures()
        self.conversation = replace(before, messages=(*before.messages, Message("user", question)))
        said: list[Message] = []
        seen: list[str] = []

        def complete(tokens: list[int]) -> Iterator[int]:
            return self._speaker.complete(tokens, figures)

        def hear(message: Message) -> None:
            said.append(message)
            self._show_call(screen, message)

        def show(delta: Delta) -> None:
            if delta.channel == "final" and not delta.recipient:
                seen.append(delta.text)
            screen.delta(delta)

        try:
            transcript = converse(self.conversation, complete, self._template, self._tools, self._rounds, hear, show)
        except KeyboardInterrupt:
            screen.end_line()
            self._stop(before, said, "".join(seen))
            return
        except BaseException:
            screen.end_line()
            self.conversation = before
            raise
        screen.end_line()
        self._keep(transcript, before)
        if not self._quiet:
            remark(figures_line(figures.record()))

    def _stop(self, before: Conversation, said: list[Message], seen: str) -> None:
        """After Ctrl-C."""
        from oss_tools.chat.messages import Message

        if seen:
            turn = (*self.conversation.messages, *said, Message("assistant", seen, "final"))
            self.conversation = replace(before, messages=turn)
        else:
            self.conversation = before
        remark("stopped" if seen else "stopped; the question is taken back")

    def _keep(self, transcript: Transcript, before: Conversation) -> None:
        """Adds a turn to the conversation; without an answer only what the user can see of it, or nothing."""
        from oss_tools.chat.completion import Problem

        self.conversation = transcript.conversation
        if transcript.answer is not None:
            return
        last = transcript.conversation.messages[-1]
        for finding in transcript.findings:
            cut = finding.problem == Problem.MISSING_END
            remark("the answer is cut off" if cut else f"the answer is malformed: {finding}")
        shown = last.role == "assistant" and last.channel == "final" and not last.recipient
        if not shown or any(finding.problem != Problem.MISSING_END for finding in transcript.findings):
            remark("there is no answer; the question is taken back")
            self.conversation = before

    def _show_call(self, screen: Screen, message: Message) -> None:
        if message.role == "tool":
            screen.aside(f"← {message.content}")
        elif message.recipient:
            screen.aside(f"→ {message.recipient.removeprefix('functions.')} {message.content}")

    # ---- commands ---------------------------------------------------------------------------------------------------

    def command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/reasoning": self._reason,
            "/save": self._save,
            "/quit": self._quit,
        }
        if name in commands:
            commands[name](argument.strip())
        else:
            remark(f"no command {name}; known are {', '.join(commands)}")

    def _help(self, _: str) -> None:
        remark(
            "/reset begins anew; /reasoning low|medium|high; /save FILE writes the conversation as JSON; /quit or Ctrl-D ends"
        )
        remark(f"tools: {', '.join(self._tools) or 'none; see --tools'}")

    def _reset(self, _: str) -> None:
        from oss_tools.chat.tools.choice import fresh

        self._tools = fresh(self._tools)
        self.conversation = replace(self.conversation, messages=())

    def _reason(self, effort: Any) -> None:
        if effort in self._template.efforts:
            self.conversation = replace(self.conversation, effort=effort)
        remark(f"reasoning is {self.conversation.effort}; /reasoning {'|'.join(self._template.efforts)} changes it")

    def _save(self, name: str) -> None:
        """Writes the conversation to a new file, which is the user's alone; one that exists is left alone."""
        if not name:
            remark("/save needs the name of a file")
            return
        from oss_tools.checkpoints.files import PRIVATE, opener

        content = json_text(asdict(self.conversation), indent=2) + "\n"
        try:
            with open(Path(name).expanduser(), "x", encoding="utf-8", opener=opener(PRIVATE)) as file:
                file.write(content)
        except OSError as error:
            remark(f"{name}: {(error.strerror or str(error)).lower()}; nothing is saved")
        else:
            remark(f"saved to {name}")

    def _quit(self, _: str) -> None:
        self.ended = True
