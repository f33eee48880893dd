"""Programs that run a text: how it is given to them. And programs that run another program."""

from __future__ import annotations

import re
from dataclasses import dataclass


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
    "psql": Interpreter("cfv", ("--command", "--file", "--set", "--variable"), "dhpUFLoPRT", first="", later=True),  # \\!
    "mysql mariadb": Interpreter("e", ("--execute", "--init-command"), "hDu", first="", later=True),  # system
    "sqlite3 duckdb": Interpreter("c", ("-cmd", "-init"), first="", rest=True),  # .shell
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
REACH = frozenset(["docker", "podman", "nerdctl", "kubectl", "ssh", "rsh", "autossh", "dbclient"])  # another machine
REPLACE = re.compile(r"(?:-[Ii]|--replace(?:=|$))(.*)")  # of xargs
STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
MODULES = (
    "timeit",
    "pdb",
    "cProfile",
    "profile",
    "trace",
    "runpy",
    "code",
    "asyncio",
    "pip",
    "venv",
)  # python -m: they run text
EXECUTE = ("-exec", "-execdir", "-ok", "-okdir")  # of find: a program follows
CHOOSES_A_PROGRAM = re.compile(  # variables from which interpreters and the linker take programs
    r"(LD|DYLD|PYTHON|PERL5?|RUBY|NODE|LUA|R|JAVA|JDK|GIT|PHP)_?\w*|(BASH_)?ENV|PATH|IFS|PS4|SHELLOPTS|BASHOPTS|PROMPT_COMMAND"
    r"|EDITOR|VISUAL|PAGER|SHELL|_JAVA_OPTIONS"
)
