"""Placeholders where a value would become a program are refused when a file is loaded; as arguments they are fine."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from oss_tools.chat.tools.commands import load_commands
from oss_tools.chat.tools.program_text import program_on_stdin, program_text
from oss_tools.errors import BadRequest

PROGRAMS = [
    ["sh", "-c", "echo {x}"],
    ["bash", "-c", "{x}"],
    ["/bin/bash", "-ec", "echo {x}"],
    ["zsh", "-lc", "{x}"],
    ["sh", "-c", "-e", "{x}"],
    ["sh", "-e", "-c", "--", "{x}"],
    ["bash", "-o", "pipefail", "-c", "{x}"],
    ["bash", "--norc", "+x", "-c", "{x}"],
    ["bash", "-{x}", "echo"],
    ["sh", "{x}"],
    ["fish", "--command={x}"],
    ["ksh93", "-c", "print {x}"],
    ["python3", "-c", "print('{x}')"],
    ["python3.12", "-Ic", "{x}"],
    ["python", "-W", "ignore", "-c{x}"],
    ["/opt/py/bin/python3.13t", "-c", "{x}"],
    ["pypy3.10", "-m", "{x}"],
    ["python3", "{x}"],
    ["python3", "-m", "timeit", "-n1", "{x}"],
    ["gosu", "nobody", "stdbuf", "-oL", "sh", "-c", "{x}"],
    ["perl", "-e", "{x}"],
    ["perl5.36.0", "-lane", "print {x}"],
    ["perl", "-M{x}", "tool.pl"],
    ["ruby", "-e", "puts '{x}'"],
    ["node", "-e", "{x}"],
    ["node", "-p", "{x}"],
    ["nodejs", "--eval={x}"],
    ["node", "--print", "{x}"],
    ["node", "--import", "data:text/javascript,{x}", "tool.js"],
    ["deno", "eval", "{x}"],
    ["php", "-r", "{x}"],
    ["php8.2", "-d", "auto_prepend_file={x}", "tool.php"],
    ["lua", "-e", "{x}"],
    ["luajit", "-e{x}"],
    ["awk", "/{x}/ {{print}}"],
    ["gawk", "-F", ":", "{x}", "/etc/hosts"],
    ["mawk", "-v", "n=1", "{x}"],
    ["gawk", "-e", "{x}"],
    ["sed", "s/a/{x}/"],
    ["sed", "-n", "-e", "p", "-e", "{x}"],
    ["sed", "-e", "p", "file", "--expression={x}"],
    ["env", "A=1", "sh", "-c", "{x}"],
    ["/usr/bin/env", "-S", "sh -c {x}"],
    ["/usr/bin/env", "-S", "sh -c", "{x}"],
    ["env", "-vS{x}"],
    ["env", "--split-string=python3 -c", "{x}"],
    ["env", "BASH_ENV={x}", "bash", "tool.sh"],
    ["env", "LD_PRELOAD={x}", "true"],
    ["env", "{x}=1", "true"],
    ["env", "{x}"],
    ["nice", "{x}"],
    ["busybox", "sh", "-c", "{x}"],
    ["busybox", "awk", "{x}"],
    ["xargs", "-n1", "sh", "-c", "echo {x}"],
    ["xargs", "{x}"],
    ["timeout", "5", "bash", "-c", "{x}"],
    ["sudo", "-u", "nobody", "python3", "-c", "{x}"],
    ["docker", "run", "--rm", "image", "sh", "-c", "{x}"],
    ["kubectl", "exec", "pod", "--", "bash", "-lc", "{x}"],
    ["uv", "run", "python", "-c", "{x}"],
    ["find", ".", "-exec", "sh", "-c", "echo {x}", ";"],
    ["find", ".", "-exec", "{x}", ";"],
    ["ssh", "host", "ls {x}"],
    ["ssh", "-p", "22", "-t", "host", "ls", "{x}"],
    ["ssh", "-o", "ProxyCommand={x}", "host"],
    ["pwsh", "-Command", "Get-Item", "{x}"],
    ["pwsh", "-NoProfile", "-c", "{x}"],
    ["powershell.exe", "-com", "{x}"],
    ["powershell", "{x}"],
    ["pwsh", "-enc", "{x}"],
    ["Rscript", "-e", "{x}"],
    ["R", "--no-save", "-e", "{x}"],
    ["julia", "-E", "{x}"],
    ["osascript", "-e", 'say "{x}"'],
    ["eval", "{x}"],
    ["watch", "-n1", "ls {x}"],
    ["parallel", "echo {x}", ":::", "a"],
    ["su", "nobody", "-c", "{x}"],
    ["flock", "/tmp/lock", "-c", "{x}"],
    ["script", "-qc", "{x}", "/dev/null"],
    ["tar", "--to-command={x}", "-xf", "a.tar"],
    ["tar", "-xf", "a.tar", "--checkpoint-action", "exec={x}"],
    ["rsync", "-e", "{x}", "a", "b"],
    ["git", "-c", "core.pager={x}", "log"],
    ["gdb", "-batch", "-ex", "{x}"],
    ["vim", "-c", "{x}"],
    ["emacs", "--batch", "--eval", "{x}"],
    ["make", "{x}"],
    ["sh", "-c", 'eval "$1"', "sh", "{x}"],
    ["psql", "-d", "base", "-c", "{x}"],
    ["mysql", "-e", "select '{x}'"],
    ["sqlite3", "base.db", "{x}"],
]

STDIN = [  # where the arguments come as JSON
    ["sh"],
    ["sh", "-s"],
    ["bash", "-es", "a"],
    ["bash", "-o", "pipefail"],
    ["sh", "/dev/stdin"],
    ["perl"],
    ["perl", "-w", "-"],
    ["ruby"],
    ["php"],
    ["python3", "-u"],
    ["node", "-"],
    ["env", "A=1", "sh"],
    ["timeout", "5", "bash"],
    ["busybox", "sh"],
    ["docker", "exec", "-i", "box", "sh"],
    ["ssh", "host"],
    ["ssh", "-p", "22", "host", "bash"],
    ["xargs", "sh", "-c"],
    ["xargs", "-n1", "sh", "-c"],
    ["xargs", "-I", "%", "sh", "-c", "echo %"],
    ["xargs", "-I{}", "sh", "-c", "echo {}"],
    ["xargs", "--replace=%", "python3", "-c", "print('%')"],
    ["parallel"],
    ["make", "-f", "-"],
]

ARGUMENTS = [
    ["sh", "-c", 'echo "$1"', "sh", "{x}"],
    ["bash", "-ec", 'printf %s "$1"', "bash", "{x}"],
    ["bash", "-o", "errexit", "tool.sh", "{x}"],
    ["sh", "tool.sh", "-c", "{x}"],
    ["python3", "-c", "import sys; print(sys.argv)", "--city={x}", "-c", "{x}"],
    ["python3", "weather.py", "--city={x}"],
    ["python3", "-m", "weather", "{x}"],
    ["python3", "-W", "ignore", "tool.py", "{x}"],
    ["perl", "-ne", "print", "{x}"],
    ["perl", "-I", "lib", "tool.pl", "{x}"],
    ["ruby", "-rjson", "tool.rb", "{x}"],
    ["node", "tool.js", "--eval={x}"],
    ["node", "--max-old-space-size=100", "tool.js", "{x}"],
    ["awk", "-v", "name={x}", "$1 == name", "table"],
    ["awk", "-vname={x}", "$1 == name", "table"],
    ["awk", "-f", "tool.awk", "{x}"],
    ["sed", "-n", "3p", "{x}"],
    ["env", "CITY={x}", "python3", "tool.py"],
    ["env", "LC_ALL=C", "sort", "-S", "{x}"],
    ["/usr/bin/env", "-S", "python3 -u tool.py", "{x}"],
    ["timeout", "5", "grep", "-e", "{x}", "file"],
    ["nice", "-n5", "tool", "{x}"],
    ["grep", "-c", "{x}", "file"],
    ["curl", "-X", "{x}", "https://example.org/"],
    ["find", "{x}", "-name", "a"],
    ["ssh", "{x}", "uptime"],
    ["git", "log", "-c", "{x}"],
    ["kubectl", "get", "node", "{x}"],
    ["echo", "sh", "{x}"],
    ["tar", "-cf", "{x}", "folder"],
    ["pwsh", "-File", "tool.ps1", "{x}"],
    ["sqlite3", "{x}", "select 1"],
    ["cat"],
    ["python3", "tool.py"],
    ["sh", "-c", "cat"],
    ["bash", "tool.sh"],
    ["env", "A=1", "python3", "-u", "tool.py"],
    ["python3", "-m", "tool"],
    ["perl", "-ne", "print"],
    ["ssh", "host", "tool"],
    ["xargs", "tool"],
    ["xargs", "-I", "%", "sh", "-c", 'echo "$1"', "sh", "%"],
    ["jq", ".x"],
    ["docker", "run", "-i", "image", "python3", "tool.py"],
    ["grep", "sh"],
]


def loaded(folder: Path, command: list[str]) -> None:
    entry = {
        "name": "t",
        "command": command,
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}, "print": {"type": "string"}}},
    }
    (folder / "tools.yaml").write_text(yaml.safe_dump({"tools": [entry]}))
    load_commands(folder / "tools.yaml")


@pytest.mark.parametrize("command", PROGRAMS, ids=" ".join)
def test_a_value_is_no_program(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(BadRequest, match=r"would become program text of .*; pass it as an argument.*stdin") as caught:
        loaded(tmp_path, command)
    assert "\n" not in str(caught.value)
    assert "tool 1 (t)" in str(caught.value)


@pytest.mark.parametrize("command", STDIN, ids=" ".join)
def test_what_comes_on_stdin_is_no_program(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(BadRequest, match="would take the arguments on its stdin for a program; name a script"):
        loaded(tmp_path, command)


@pytest.mark.parametrize("command", ARGUMENTS, ids=" ".join)
def test_a_value_may_be_an_argument(tmp_path: Path, command: list[str]) -> None:
    loaded(tmp_path, command)


WORDS = sorted({word for command in (*PROGRAMS, *STDIN, *ARGUMENTS) for word in command})


@given(st.lists(st.sampled_from(WORDS) | st.text("-{x}=Ss/e", min_size=1, max_size=4), min_size=1, max_size=6))
def test_any_command_is_either_looked_through_or_refused_in_a_line(command: list[str]) -> None:
    assert program_text(command, lambda part: False) is None
    found = program_text(command, lambda part: "{x}" in part)
    assert found is None or "{x}" in found[1]
    assert program_on_stdin(command) is None or isinstance(program_on_stdin(command), str)


def test_a_command_has_a_bounded_number_of_parts(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has 300 parts, more than 256"):
        loaded(tmp_path, ["echo"] * 300)
