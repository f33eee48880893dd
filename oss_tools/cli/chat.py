"""Talk with a model in the terminal, with tools if you like.

The answer goes to stdout as it comes. Reasoning and tool calls go to stderr, dimmed on a terminal. Ctrl-C stops an answer
and keeps the conversation; Ctrl-D or /quit ends the conversation. /help lists the commands: /undo, /retry, /set, /save,
/load and others. A line that ends with a backslash goes on in the next line. Questions may also come through a pipe, one a
line. What is typed on a terminal is kept for the next conversation, in the file oss-tools/chat-history in XDG_STATE_HOME.

Tools: `calculator` computes. `python` runs the model's code in a process that has no network, starts no other programs and
writes to its own folder only (Linux). `browser:FOLDER` searches the texts of a folder, `browser:ADDRESS` asks a SearXNG
server. A YAML file declares commands, which run with your rights, or a browser. A JSON file names MCP servers, which the
program starts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._chat import Reasoning, Speaker
from oss_tools.cli._commands import Chat
from oss_tools.cli._engine import EngineOptions, Model, loaded
from oss_tools.cli._lines import texts
from oss_tools.cli._options import QuietFlag
from oss_tools.cli._output import remark
from oss_tools.cli._prompt_cache import KeptPrompt, PromptCache
from oss_tools.cli._sampling import SamplingOptions
from oss_tools.cli._tools import ToolOptions

if TYPE_CHECKING:
    from oss_tools.checkpoints import Metadata

EXAMPLES = """
oss-tools chat tiny --tools calculator
oss-tools chat gpt-oss-20b/ --reasoning high --tools python,tools.yaml
oss-tools chat gpt-oss-20b/ --tools browser:handbook/
oss-tools chat gpt-oss-20b/ --tools browser:handbook/ --prompt-cache handbook.prompt
oss-tools chat tiny -q < questions.txt
"""


def run(
    model: Model,
    *,
    reasoning: Reasoning = "medium",
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="Instructions that come before the conversation.")
    ] = None,
    tools: ToolOptions,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", "-n", min=1, help="The most tokens of an answer. [default: as many as the context has room for]",
            show_default=False,
        ),
    ] = None,
    sampling: SamplingOptions,
    how: EngineOptions,
    prompt_cache: PromptCache = None,
    quiet: QuietFlag = False,
) -> None:  # fmt: skip
    from oss_tools.chat.chat_template import chat_template, has_chat_template, takes_tools
    from oss_tools.errors import BadCheckpoint, BadRequest

    rule = sampling.rule()
    opened = tools.opened()

    def check(metadata: Metadata) -> None:
        if not has_chat_template(metadata):
            raise BadCheckpoint(f"{model}: has no chat template; `generate --raw` continues a plain text")
        if opened and not takes_tools(metadata):
            raise BadRequest(f"{model}: its chat template has no place for tools; leave out --tools")

    prompt = KeptPrompt(prompt_cache, quiet) if prompt_cache else None
    with loaded(model, **how.settings(), quiet=quiet, check=check, prompt=prompt) as engine:
        template = chat_template(engine.metadata, engine.text)
        chat = Chat(Speaker(engine, rule, max_tokens), template, opened, reasoning, system, tools.rounds, quiet)
        if sys.stdin.isatty() and not quiet:
            remark("/help lists the commands, Ctrl-D ends")
        for text in texts():
            chat.take(text)
            if chat.ended:
                break
        if prompt:
            prompt.end(engine, chat.speaker.heard)
