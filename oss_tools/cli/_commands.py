"""What a user may say in `chat` beside questions: commands, each a method `command_NAME` whose docstring is its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from oss_tools.cli._output import remark
from oss_tools.cli._talk import Talk
from oss_tools.guesses import near_names

SHOWN = 60  # characters of a message in a listing
INDEX = "command_"


class Chat(Talk):
    """A conversation that obeys commands.

    Attributes:
        ended: whether the user has said /quit.
    """

    ended = False

    def take(self, text: str) -> None:
        """What the user says: a command, a question, or nothing. What fails is said, and the conversation goes on."""
        from oss_tools.errors import OssToolsError

        text = text.strip()
        try:
            if text.startswith("/"):
                self.command(text)
            elif text:
                self.ask(text)
        except OssToolsError as error:
            remark(str(error))

    def command(self, text: str) -> None:
        name, _, argument = text.removeprefix("/").partition(" ")
        known = self.commands()
        if name in known:
            known[name](argument.strip())
        else:
            near = near_names(name, known, likeness=0.6)
            guess = f"did you mean /{' or /'.join(near)}? K" if near else "k"
            remark(f"no command /{name[:SHOWN]}; {guess}nown are /{', /'.join(known)}")

    def commands(self) -> dict[str, Callable[[str], None]]:
        """The commands by name, in the order in which they stand below."""
        names = [name for kind in reversed(type(self).__mro__) for name in vars(kind) if name.startswith(INDEX)]
        return {name.removeprefix(INDEX): getattr(self, name) for name in dict.fromkeys(names)}

    # ---- the commands -----------------------------------------------------------------------------------------------

    def command_help(self, _: str) -> None:
        """lists the commands"""
        for name, command in self.commands().items():
            remark(f"/{name} {command.__doc__}")
        remark('a line that ends with \\ goes on in the next; """ begins and ends a text of several lines')
        remark(f"tools: {', '.join(self._tools) or 'none; see --tools'}")

    def command_reset(self, _: str) -> None:
        """begins a new conversation with the same settings"""
        from oss_tools.chat.tools.choice import fresh

        self._tools = fresh(self._tools)
        self.conversation = replace(self.conversation, messages=())

    def command_undo(self, _: str) -> None:
        """takes the last question and its answer back"""
        question = self._take_back()
        remark("there is no question" if question is None else f"taken back: {question[:SHOWN]}")

    def command_retry(self, _: str) -> None:
        """asks the last question again"""
        question = self._take_back()
        if question is None:
            remark("there is no question")
            return
        sampling = self.speaker.sampling
        if sampling.temperature == 0 or sampling.seed is not None:
            remark("the answer will be the same: /set temperature 0.7 and /set seed none make another")
        self.ask(question)

    def command_system(self, instructions: str) -> None:
        """TEXT: sets the instructions that come before the conversation; - removes them; alone, shows them"""
        if instructions:
            self.conversation = replace(self.conversation, instructions=None if instructions == "-" else instructions)
        remark(f"instructions: {self.conversation.instructions or 'none'}")

    def command_reasoning(self, effort: Any) -> None:
        """none, low, medium or high: sets how much the model reasons; alone, shows it"""
        if effort in self._template.efforts:
            self.conversation = replace(self.conversation, effort=effort)
        remark(f"reasoning is {self.conversation.effort}; /reasoning {'|'.join(self._template.efforts)} changes it")

    def command_set(self, argument: str) -> None:
        """NAME VALUE: sets temperature, top_k, top_p, min_p, repetition_penalty, seed or max_tokens; alone, shows them"""
        name, _, value = argument.partition(" ")
        if name:
            self._set(name.replace("-", "_").strip(), value.strip())
        settings = {f.name: getattr(self.speaker.sampling, f.name) for f in fields(self.speaker.sampling)}
        settings["max_tokens"] = self.speaker.max_tokens
        remark(", ".join(f"{name} {'none' if value is None else value}" for name, value in settings.items()))

    def command_save(self, name: str) -> None:
        """FILE: writes the conversation as JSON; never replaces a file"""
        from oss_tools.chat.saved import save

        if not name:
            remark("/save needs the name of a file")
            return
        try:
            save(self.conversation, Path(name).expanduser())
        except OSError as error:
            remark(f"{name}: {(error.strerror or str(error)).lower()}; nothing is saved")
        else:
            remark(f"saved to {name}")

    def command_load(self, name: str) -> None:
        """FILE: goes on with a saved conversation"""
        from oss_tools.chat.saved import load
        from oss_tools.chat.tools.choice import fresh

        if not name:
            remark("/load needs the name of a file")
            return
        found = load(Path(name).expanduser())
        self._tools = fresh(self._tools)
        effort = found.effort if found.effort in self._template.efforts else self.conversation.effort
        self.conversation = replace(found, tools=self.conversation.tools, effort=effort)
        count = sum(message.role == "user" for message in found.messages)
        remark(f"{count} questions from {name}; tools are those of this conversation")

    def command_quit(self, _: str) -> None:
        """ends the conversation, as Ctrl-D does"""
        self.ended = True

    # ---- of several -------------------------------------------------------------------------------------------------

    def _take_back(self) -> str | None:
        """Removes the last question and all that followed; returns it."""
        messages = self.conversation.messages
        at = next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)
        if at is None:
            return None
        self.conversation = replace(self.conversation, messages=messages[:at])
        return messages[at].content

    def _set(self, name: str, value: str) -> None:
        """Raises BadRequest for a name or a value that is none, BadRecipe for one out of range."""
        from oss_tools.errors import BadRequest
        from oss_tools.guesses import none_named

        kinds: dict[str, type] = {
            f.name: int if f.name in ("top_k", "seed") else float for f in fields(self.speaker.sampling)
        }
        kinds["max_tokens"] = int
        if name not in kinds:
            raise BadRequest(none_named("setting", name, kinds))
        try:
            number = None if value == "none" and name in ("seed", "max_tokens") else kinds[name](value)
        except ValueError:
            raise BadRequest(f"/set {name} needs a number, not {value[:SHOWN]!r}") from None
        if number is not None and (number < 0 or (name == "max_tokens" and number < 1)):
            raise BadRequest(f"/set {name} {value}: too small")
        if name == "max_tokens":
            self.speaker = replace(self.speaker, max_tokens=number)
        else:
            changed: dict[str, Any] = {name: number}
            self.speaker = replace(self.speaker, sampling=replace(self.speaker.sampling, **changed))
