"""The command line's frame: lazy verbs, quick help, one-line errors, exit statuses."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from oss_tools import __version__
from oss_tools.cli import main as cli
from oss_tools.cli._options import format_size, parse_size
from oss_tools.errors import BadRecipe, NoRoom, OssToolsError, VerificationFailed

HEAVY = ("numba", "numpy", "torch", "transformers", "lm_eval", "gguf", "rich", "yaml", "tabulate")
runner = CliRunner()


def run(*args: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "oss_tools", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom oss_tools.cli.main import main\nsys.argv[1:] = ['--help']\n"
        "try: main()\nexcept SystemExit: print([m for m in sys.modules if m.split('.')[0] in "
        f"{HEAVY!r}], [m for m in sys.modules if m.startswith('oss_tools.cli.')])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip().splitlines()[-1] == "[] ['oss_tools.cli._outlet', 'oss_tools.cli._groups', 'oss_tools.cli.main']"


def test_help_lists_every_verb_with_its_summary() -> None:
    output = run("--help", env={**os.environ, "COLUMNS": "200", "TERMINAL_WIDTH": "200"}).stdout
    for verb, file in cli.verbs().items():
        line = next(line for line in output.splitlines() if line.strip().startswith(f"{verb} "))
        assert line.split(maxsplit=1)[1][:30] == cli.summary(file)[:30]


@pytest.mark.parametrize("verb", cli.verbs())
def test_every_verb_has_a_short_summary_and_examples_that_name_it(verb: str) -> None:
    assert 10 < len(cli.summary(cli.verbs()[verb])) <= 70
    command = cli.load(verb)
    assert command.name == verb
    examples = [line.strip() for line in command.epilog.splitlines()[2:]]
    assert examples
    assert all(f"{line} ".startswith(f"oss-tools {verb} ") for line in examples)
    result = runner.invoke(cli.app, [verb, "--help"])
    assert result.exit_code == 0
    assert examples[0] in result.stdout


def test_version() -> None:
    assert run("--version").stdout.strip() == f"oss-tools {__version__}"


def test_an_unknown_verb_is_a_usage_error_with_a_suggestion() -> None:
    result = run("inspct")
    assert result.returncode == 2
    assert "Did you mean 'inspect'?" in result.stderr


def test_completion_offers_verbs_and_options() -> None:
    def complete(words: str, index: int) -> list[str]:
        env = {**os.environ, "_OSS_TOOLS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        return run(env=env).stdout.split()

    assert "inspect" in complete("oss-tools in", 1)
    assert "--tensors" in complete("oss-tools inspect --t", 2)
    assert (
        "_OSS_TOOLS_COMPLETE"
        in run("--show-completion", "bash", env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}).stdout
    )


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OssToolsError("x: wrong"), 2, "oss-tools: x: wrong"),
        (BadRecipe("two\nlines"), 2, "oss-tools: two lines"),
        (OssToolsError("a \x1b[31mname"), 2, "oss-tools: a \\x1b[31mname"),
        (VerificationFailed("they differ"), 1, "oss-tools: they differ"),
        (NoRoom("no disk"), 3, "oss-tools: no disk"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"),
            2,
            "oss-tools: a/b: no such file or directory",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            2,
            "oss-tools: a: permission denied; check the permissions",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            3,
            "oss-tools: no space left on device; free some space or choose another disk",
        ),
        (MemoryError(), 3, "oss-tools: not enough memory"),
        (KeyboardInterrupt(), 130, "oss-tools: interrupted"),
        (
            ZeroDivisionError("by\nzero"),
            70,
            "oss-tools: internal error: ZeroDivisionError: by zero; a defect of oss-tools, OSS_TOOLS_DEBUG=1 shows where",
        ),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke_failing(error, monkeypatch)
    assert result.exit_code == status
    assert result.stderr.splitlines() == [line]


def test_debug_adds_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSS_TOOLS_DEBUG", "1")
    result = invoke_failing(OssToolsError("wrong"), monkeypatch)
    assert result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1] == "oss-tools: wrong"


def invoke_failing(error: BaseException, monkeypatch: pytest.MonkeyPatch):
    def command(verb: str):
        app = typer.Typer(add_completion=False, rich_markup_mode=None)

        @app.command(verb)
        def run() -> None:
            raise error

        return typer.main.get_command(app)

    monkeypatch.setattr(cli, "load", command)
    return runner.invoke(cli.app, ["inspect"])


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    code = (
        "import typer\nfrom oss_tools.cli import main as cli\n"
        "def load(verb):\n    app = typer.Typer()\n    @app.command(verb)\n    def run() -> None:\n"
        "        for _ in range(100000): print('line')\n    return typer.main.get_command(app)\n"
        "cli.load = load\nimport sys\nsys.argv[1:] = ['inspect']\ncli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("16GiB", 16 * 2**30), ("1.5 kB", 1500), ("4096", 4096), ("2Ti", 2**41), ("500m", 500 * 10**6)],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 bananas", "1e9", "5GBB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_sizes_are_printed_with_three_digits() -> None:
    sizes = [format_size(n) for n in (0, 999, 13_761_264_768, 65_248_815_744, 999_600, 123_456_789, 2.5e12, 2e16, 3e18)]
    assert sizes == ["0 B", "999 B", "13.8 GB", "65.2 GB", "1 MB", "123 MB", "2.5 TB", "20 PB", "3,000 PB"]


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "0>&- 1>&- 2>&-"])
def test_without_standard_streams_a_verb_works_and_nothing_else_takes_their_numbers(closed: str, tmp_path: Path) -> None:
    def shell(arguments: str) -> int:
        program = f"{sys.executable} -m oss_tools"
        return subprocess.run(["sh", "-c", f"{program} {arguments} {closed}"], cwd=tmp_path, timeout=120).returncode

    assert shell("synth llama-tiny m") == 0
    assert shell("verify m m") == 0
    assert shell("inspect nothing") == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_where_the_line_of_an_error_cannot_be_written_the_status_stays() -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-m", "oss_tools", "inspect", "nothing"], stderr=full).returncode == 2
