"""Whether a value that a model gives would become a program: the text behind `sh -c`, the script of `awk`, what `ssh` runs.

Known are the usual interpreters and the programs that run another (`env`, `xargs`, `timeout`). The list cannot be whole: what
a script of one's own does with its arguments is for its author to decide.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Held = Callable[[str], bool]  # whether a part of the command holds a placeholder


@dataclass(frozen=True)
class Interpreter:
    """How a program is given program text.

    Attributes:
        letters: short options before text, alone or in a group (`-c`, `-lc`, `-pe`, `-cTEXT`).
        words: long options before text (`--eval TEXT`, `--eval=TEXT`), and words and short options that are not grouped.
        valued: short options with a value that is no text.
        first: what the first argument is that is no option: "script" (the name of one), "text", or "" (an argument like others).
        rest: whether all that follows the first argument is text.
        later: whether options may stand behind arguments.
        behind_options: whether the text is not the value of its option, but the first argument: so in shells.
        ends: whether all that follows the text is arguments.
    """

    letters: str = ""
    words: tuple[str, ...] = ()
    valued: str = ""
    first: str = "script"
    rest: bool = False
    later: bool = False
    behind_options: bool = False
    ends: bool = False


SHELL = Interpreter("c", ("--command", "--commands", "--init-command"), "oO", behind_options=True)
NODE = Interpreter("eprC", ("--eval", "--print", "--import", "--require", "--loader", "--experimental-loader"))
SPOKEN_TO = Interpreter("ecx", ("--eval", "--expr", "-eval", "--execute", "--load", "--funcall", "--batch-string"), first="")
EVERYTHING = Interpreter(first="text", rest=True)
USUAL = {  # looked for anywhere in a command, since any program may run them
    "sh bash dash ash hush zsh ksh ksh93 mksh oksh pdksh yash fish csh tcsh rbash xonsh": SHELL,
    "python pythonw pypy ipython bpython micropython jython graalpy": Interpreter("cm", valued="WX", ends=True),
    "perl": Interpreter("eEmM", valued="I"),
    "ruby jruby truffleruby": Interpreter("er", valued="IEC"),
    "node nodejs bun ts-node tsx": NODE,
    "deno": Interpreter("e", ("eval", "--eval", "run"), first=""),
    "php": Interpreter("rBREd", ("--run", "--process-begin", "--process-code", "--process-end", "--define"), "cgStz"),
    "lua luajit texlua": Interpreter("el"),
    "Rscript littler": Interpreter("e", later=True),
    "julia": Interpreter("eEL", ("--eval", "--print", "--load"), "CJpt"),
    "osascript": Interpreter("e", valued="l", later=True),
    "awk gawk mawk nawk original-awk goawk": Interpreter("efi", ("--source", "--file", "--include"), "vF", first="text"),
    "sed gsed": Interpreter("ef", ("--expression", "--file"), first="text", later=True),
    "pwsh powershell": EVERYTHING,  # see _powershell
}
OTHERS = {  # looked for where a command begins
    "es rc elvish nu osh ysh": SHELL,
    "R r electron": Interpreter("e", ("--import", "--require"), later=True),
    "groovy scala kotlin raku swift elixir iex escript janet racket guile ghc clojure clj sbcl ecl clisp emacs": SPOKEN_TO,
    "gnuplot octave maxima dc nc ncat": SPOKEN_TO,
    "matlab erl": Interpreter(words=("-r", "-batch", "-eval", "-run", "-s"), first=""),
    "tclsh wish expect m4": Interpreter("c"),
    "cmd eval watch parallel rush tmux screen socat make gmake": EVERYTHING,
    "ssh rsh autossh dbclient": Interpreter("oF", valued="BbcDEeIiJlLmOpQRSWw", first="", rest=True),
    "su runuser script flock": Interpreter("cS", ("--command", "--session-command"), first="", later=True),
    "gdb lldb": Interpreter("o", ("-ex", "--ex", "-eval-command", "--eval-command", "--one-line"), first="", later=True),
    "vim vi nvim ex view": Interpreter("cS", ("--cmd",), first="", later=True),
    "rsync": Interpreter("e", ("--rsh", "--rsync-path"), first="", later=True),
    "tar gtar bsdtar": Interpreter(
        "IF", ("--to-command", "--checkpoint-action", "--use-compress-program"), first="", later=True
    ),
    "git": Interpreter("c", ("--exec-path", "--config-env"), "C", first=""),
}
KNOWN = {name: it for table in (USUAL, OTHERS) for names, it in table.items() for name in names.split()}
ANYWHERE = {name for names in USUAL for name in names.split()}
AT_ONCE = "env nice nohup sudo doas setsid stdbuf time xargs npx bunx uvx exec command busybox toybox unbuffer"
BEHIND_MORE = (
    "timeout gtimeout ionice chrt taskset uv poetry conda mamba pipenv hatch firejail bwrap unshare nsenter chroot systemd-run "
    "strace ltrace sshpass caffeinate arch chronic entr dbus-run-session xvfb-run faketime proot fakeroot"
)
RUN_THE_NEXT = frozenset(AT_ONCE.split())  # their first argument is a program
RUN_ANOTHER = RUN_THE_NEXT | frozenset(BEHIND_MORE.split())  # one of their arguments is
EXECUTE = ("-exec", "-execdir", "-ok", "-okdir")  # of find: a program follows
CHOOSES_A_PROGRAM = re.compile(  # variables from which interpreters and the linker take programs
    r"(LD|DYLD|PYTHON|PERL5?|RUBY|NODE|LUA|R|JAVA|JDK|GIT|PHP)_?\w*|(BASH_)?ENV|PATH|IFS|PS4|SHELLOPTS|BASHOPTS|PROMPT_COMMAND"
    r"|EDITOR|VISUAL|PAGER|SHELL|_JAVA_OPTIONS"
)


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
            if it.rest:
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
