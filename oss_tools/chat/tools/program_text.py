"""Whether a value that a model gives would become a program: the text behind `sh -c`, the script of `awk`, what `ssh` runs.

Known are the usual interpreters and the programs that run another (`env`, `xargs`, `timeout`). The list cannot be whole: what
a script of one's own does with its arguments is for its author to decide.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence

from oss_tools.chat.tools.interpreters import (
    ANYWHERE,
    CHOOSES_A_PROGRAM,
    EXECUTE,
    KNOWN,
    MODULES,
    REACH,
    REPLACE,
    RUN_ANOTHER,
    RUN_THE_NEXT,
    STDIN,
    Interpreter,
)

Held = Callable[[str], bool]  # whether a part of the command holds a placeholder


def program_text(command: Sequence[str], held: Held) -> tuple[str, str] | None:
    """The program, and the part of its text that holds a placeholder; None where there is none."""
    parts, split = _taken_apart(command)
    if (text := next(filter(held, split), None)) is not None:
        return "env -S", text
    for place, part in enumerate(parts[:-1]):
        name, behind = _name(part), parts[place + 1 :]
        begins = place == 0 or (_name(parts[0]) in RUN_ANOTHER and not any(_name(p) in KNOWN for p in parts[:place]))
        found: Iterator[str] = iter(())
        if name in RUN_THE_NEXT and begins:
            found = _runs(behind, held)
        elif part in EXECUTE:
            found = iter(behind[:1])
        elif name in ("pwsh", "powershell"):
            found = _powershell(behind, name)
        elif name in KNOWN and (begins or name in ANYWHERE):
            found = _texts(KNOWN[name], behind, held, begins or KNOWN[name].first == "text")
        if (text := next(filter(held, found), None)) is not None:
            return name, text
    return None


def program_on_stdin(command: Sequence[str]) -> str | None:
    """The program of a command that would take its stdin for program text (a shell without a script); None where none does."""
    parts, _ = _taken_apart(command)
    for place, part in enumerate(parts):
        name, behind = _name(part), parts[place + 1 :]
        if place and _name(parts[0]) not in RUN_ANOTHER | REACH:
            return None
        if name == "xargs":
            return _from_xargs(parts, behind)
        if name in KNOWN and (name not in REACH or len(_arguments(KNOWN[name], behind)[0]) < 2):
            return name if name in REACH or _reads_program(name, KNOWN[name], behind) else None
    return None


def _from_xargs(parts: Sequence[str], behind: list[str]) -> str | None:
    """xargs makes words of stdin, which stand behind the command, or in it in the place of a word (-I)."""
    options = [(place, matched[1]) for place, part in enumerate(behind) if (matched := REPLACE.match(part))]
    if not options:
        text = program_text([*parts, "\0"], lambda part: "\0" in part)
    else:
        place, word = options[0]
        apart = not word and behind[place] == "-I"  # -I WORD
        word = word or ("".join(behind[place + 1 : place + 2]) if apart else "{}")
        text = program_text(["xargs", *behind[:place], *behind[place + 1 + apart :]], lambda part: word in part)
    return text[0] if text else None


def _reads_program(name: str, it: Interpreter, parts: Sequence[str]) -> bool:
    """Whether an interpreter is given its program in no other way than on stdin."""
    if name in ("parallel", "rush"):
        return True
    if name in ("make", "gmake"):
        return bool({"-f-", "--file=-"} & set(parts)) or ("-f", "-") in itertools.pairwise(parts)
    if it.first != "script":
        return False
    arguments, text_given = _arguments(it, parts)
    options = parts[: len(parts) - len(arguments)]
    if it.behind_options and any(re.fullmatch(r"-[a-z]*s[a-z]*", part) for part in options):  # sh -s
        return True
    return not text_given and (not arguments or arguments[0] in STDIN)


def _arguments(it: Interpreter, parts: Sequence[str]) -> tuple[Sequence[str], bool]:
    """What stands behind an interpreter's options, and whether one of these gave it a program."""
    text_given, place = False, 0
    while place < len(parts):
        kind, value = _option(parts[place], it)
        if kind == "":
            return parts[place:], text_given
        text_given = text_given or kind == "text"
        place += 2 if value is None and (kind == "value" or (kind == "text" and not it.behind_options)) else 1
    return [], text_given


def _name(part: str) -> str:
    """A program's name without its folder, version and ending: python of /usr/bin/python3.12, pwsh of pwsh.exe."""
    name = re.sub(r"\.exe$", "", re.split(r"[/\\]", part)[-1], flags=re.IGNORECASE)
    shorter = re.sub(r"[-.\d]+[a-z]?$", "", name)
    names = (name, shorter, name.lower(), shorter.lower())
    return next((n for n in names if n in KNOWN or n in RUN_ANOTHER), name)


def _taken_apart(command: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command with what `env -S TEXT` splits taken apart, and these texts: a value in one could become several parts."""
    waiting, parts, texts, of_env = list(command), [], [], False
    while waiting:
        part = waiting.pop(0)
        found = re.match(r"(?:-[a-zA-Z0]*?S|--split-string(?:=|$))(.*)", part, re.DOTALL) if of_env else None
        if found:
            text = found[1] or (waiting.pop(0) if waiting else "")
            texts.append(text)
            try:
                waiting[:0] = shlex.split(text)
            except ValueError:
                waiting[:0] = text.split()
        else:
            parts.append(part)
            of_env = _name(part) == "env" or (of_env and (part.startswith("-") or "=" in part))
    return parts, texts


def _runs(parts: Sequence[str], held: Held) -> Iterator[str]:
    """What names a program behind env, nice, xargs …: the first argument, and variables that choose one."""
    for part in parts:
        name, equals, _ = part.partition("=")
        if equals and not part.startswith("-"):
            if held(name) or CHOOSES_A_PROGRAM.fullmatch(name):
                yield part
        elif not part.startswith("-"):
            yield part
            return


def _powershell(parts: Sequence[str], name: str) -> Iterator[str]:
    """Its options may be shortened; what follows -Command is text to the end, and so is what stands without an option."""
    for place, part in enumerate(parts):
        option = part.lower().lstrip("-/")
        if part[:1] not in ("-", "/"):
            if place == 0 or parts[place - 1][:1] not in ("-", "/"):
                yield from parts[place:] if name == "powershell" else [part]
                return
        elif option and ("command".startswith(option) or "encodedcommand".startswith(option) or option in ("ec", "cwa")):
            yield from parts[place + 1 :]
            return
        elif option and "file".startswith(option):
            yield from parts[place + 1 : place + 2]
            return


def _texts(it: Interpreter, parts: Sequence[str], held: Held, positional: bool) -> Iterator[str]:
    """The parts behind an interpreter's name that are program text, name the program, or could become an option.

    `positional`: whether the name is surely that of a program that runs, so that its first argument counts.
    """
    text_given, place = False, 0
    while place < len(parts):
        part, place = parts[place], place + 1
        kind, value = _option(part, it)
        if kind == "":  # an argument
            if (it.behind_options and text_given) or (positional and it.first and not text_given):
                yield part
            if it.rest or (it.behind_options and text_given and re.search(r"\beval\b", part)):
                yield from parts[place:]
            if not it.later:
                return
            text_given = True
        elif kind == "flags":
            yield part
        elif kind == "text" and it.behind_options and not part.startswith("--"):
            yield part
            text_given = True
        else:
            if value is None:
                value, place = parts[place] if place < len(parts) else "", place + 1
            if kind == "text":
                yield value
                text_given = True
                if it.ends:
                    if value in MODULES:
                        yield from parts[place:]
                    return
            elif kind == "value" and held(part.partition("=")[0]) and part.startswith("--"):
                yield part


def _option(part: str, it: Interpreter) -> tuple[str, str | None]:
    """What an option is followed by ("text", "value", or "flags": nothing; "": it is no option), and what it holds of that."""
    word, equals, value = part.partition("=")
    if word in it.words:
        return "text", value if equals else None
    if part == "--" or part.startswith("--"):
        return ("flags", None) if not equals else ("value", value)
    if part[:1] not in ("-", "+") or len(part) < 2:
        return "", None
    for place, letter in enumerate(part[1:], 2):
        if letter in it.letters:
            return "text", part[place:] if part[place:] and not it.behind_options and not part[place:].isalpha() else None
        if letter in it.valued:
            return "value", part[place:] or None
    return "flags", None
