"""The entry point `oss-tools`: finds the verbs, imports the one asked for, turns errors into one line and an exit status."""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from oss_tools import __version__
from oss_tools.cli import _outlet
from oss_tools.cli._groups import flat
from oss_tools.errors import OssToolsError
from oss_tools.escapes import one_line

INTERRUPTED, BROKEN_PIPE, INTERNAL_ERROR = 130, 141, 70  # beside 0 fine, 1 failed, 2 bad input, 3 lacking resource
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
RESOURCES = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def verbs() -> dict[str, Path]:
    """The file of each verb, by its name on the command line."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {file.stem.replace("_", "-"): file for file in files if file.stem != "main"}


def summary(file: Path) -> str:
    """The first line of a module's docstring, without importing the module."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def load(verb: str) -> Any:
    """The click command of a verb; imports its module."""
    from oss_tools.cli._help import VerbCommand

    module = importlib.import_module(f"oss_tools.cli.{verb.replace('-', '_')}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    examples = "\n".join(f"  {line}" for line in module.EXAMPLES.strip().splitlines())
    epilog = f"\b\nExamples:\n{examples}"
    app.command(verb, cls=VerbCommand, help=module.__doc__, epilog=epilog, context_settings=SETTINGS)(flat(module.run))
    command = typer.main.get_command(app)
    if hasattr(module, "help_lists"):
        command.lists = module.help_lists  # type: ignore[attr-defined]
    if hasattr(module, "with_address"):
        command.prepared = module.with_address  # type: ignore[attr-defined]
    return command


class VerbGroup(TyperGroup):
    """A group that knows its verbs by file name and summary, and imports a verb when it is called or completed."""

    def __init__(self, **attributes: Any) -> None:
        stubs = {
            verb: TyperCommand(verb, help=summary(file), rich_markup_mode=None, callback=lambda: None)
            for verb, file in verbs().items()
        }
        super().__init__(**attributes | {"commands": stubs})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(verb, stub.help) for verb, stub in self.commands.items()]
            )  # whole, however narrow the terminal

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, stub, rest = super().resolve_command(ctx, args)
        if name is not None and stub is not None:
            return name, load(name), rest
        return name, stub, rest

    def invoke(self, ctx: Any) -> Any:
        with errors_reported(ctx):
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe shows here, not at the interpreter's end
            return result


@contextlib.contextmanager
def errors_reported(ctx: Any) -> Iterator[None]:
    """Turns every exception of a verb into one line on stderr and an exit status; OSS_TOOLS_DEBUG=1 adds the traceback."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the last flush then has somewhere to go
        raise typer.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        raise fail(f"interrupted{resume_hint(ctx)}", INTERRUPTED) from None
    except OssToolsError as error:
        raise fail(str(error), error.exit_status) from None
    except OSError as error:
        status = 3 if error.errno in RESOURCES else 2
        raise fail(describe(error) + (resume_hint(ctx) if status == 3 else ""), status) from None
    except MemoryError as error:
        raise fail(f"not enough memory{f': {error}' if str(error) else ''}", 3) from None
    except Exception as error:
        if is_usage_error(error):
            raise
        if type(error).__name__ == "UnsupportedPath":  # of numba_kernels.simd, which is not imported for its name alone
            raise fail(str(error), 2) from None
        kind = f"{type(error).__name__}: {one_line(str(error))}"
        hint = "; a defect of oss-tools, OSS_TOOLS_DEBUG=1 shows where"
        raise fail(f"internal error: {kind}{hint}", INTERNAL_ERROR) from None


def is_usage_error(error: Exception) -> bool:
    """Whether click prints this error itself, with the usage line (exit status 2)."""
    click_exception = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    return isinstance(error, click_exception)


def fail(message: str, status: int) -> typer.Exit:
    """Prints the line (and the traceback where it is wanted) and returns the exit to raise."""
    with contextlib.suppress(OSError):  # nobody can read it; the status says it still
        if os.environ.get("OSS_TOOLS_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"oss-tools: {one_line(message)}", file=sys.stderr, flush=True)
    return typer.Exit(status)


def describe(error: OSError) -> str:
    """What the system said, about which file, and what helps."""
    reason = error.strerror or str(error)
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    advice = {
        errno.ENOSPC: "; free some space or choose another disk",
        errno.EDQUOT: "; free some space or choose another disk",
        errno.EMFILE: "; raise the limit with `ulimit -n`",
        errno.EACCES: "; check the permissions",
    }.get(error.errno or 0, "")
    return f"{where}{reason[:1].lower()}{reason[1:]}{advice}"


def resume_hint(ctx: Any) -> str:
    """For verbs with --resume, how to go on."""
    verb = ctx.invoked_subcommand
    if verb and any(parameter.name == "resume" for parameter in load(verb).params):
        return "; the same command with --resume goes on from here"
    return ""


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"oss-tools {__version__}")
        raise typer.Exit()


app = typer.Typer(
    cls=VerbGroup,
    rich_markup_mode=None,  # plain help: rich would cost as much time as all the rest
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings=SETTINGS,
    epilog="`oss-tools COMMAND --help` tells more, with examples. "
    "Exit status: 0 fine, 1 a verification or gate failed, 2 bad input or usage, 3 the machine lacks something.",
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Convert, requantize, run, score and compare open-weight language models on your own machine."""


def open_standard_streams() -> None:
    """Gives a process that was started without stdin, stdout or stderr (`>&-`) empty ones: else the next file that is opened
    would have stdout's number, and what libraries print would go into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w"), encoding="utf-8"))


def main() -> None:
    """Runs the command line; ends the process with its exit status."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for what its encoding lacks
    _outlet.install()
    app(prog_name="oss-tools")
