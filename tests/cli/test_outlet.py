"""Nothing that a stranger wrote takes over the terminal: each way of printing, on a pseudo-terminal, with hostile words."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oss_tools.cli._outlet import Outlet, behind
from oss_tools.escapes import visible
from oss_tools.resources import resource
from tests.checkpoints.small_models import rename_tensors
from tests.cli.terminals import HOSTILE, ROOT, TITLE, obeyed, on_terminal
from tests.download.hub_server import Fault, Hub, serving
from tests.harness.healthbench_examples import example, write_examples
from tests.harness.scripted_grader import ScriptedGrader
from tests.harness.scripted_grader import serving as grading

SHOWN = "\\x1b]0;TAKEN\\x07"  # how TITLE must look
IN_JSON = "\\u001b]0;TAKEN\\u0007"
IN_TEMPLATE = HOSTILE.replace("\r", "")  # Jinja makes line ends of it
QUESTION = "What is 47 + 38?"


def harmless(*arguments: object, status: int = 0, says: str = SHOWN, lines: int | None = None, **options: object) -> str:
    """What reached the terminal, after a look at it: no command, but the words, and no more lines on it than wanted."""
    shown, found = on_terminal(*arguments, **options)  # type: ignore[arg-type]
    assert found == status, shown
    assert obeyed(shown) == ""
    assert says in shown
    assert lines is None or len(shown.splitlines()) == lines, shown
    return shown


def copied(folder: Path, template: str | None = None, change: Callable[[dict], dict] = lambda tokenizer: tokenizer) -> Path:
    """The embedded model's files with another template, or another tokenizer."""
    shutil.copytree(resource("tiny/checkpoint"), folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def no_harmony(tokenizer: dict) -> dict:
    """A tokenizer without the special tokens that tell harmony: the folder's template is then rendered."""
    return json.loads(json.dumps(tokenizer).replace("<|", "<!"))


def says(text: str) -> Callable[[dict], dict]:
    """A tokenizer in which each digit is written as `text`."""

    def change(tokenizer: dict) -> dict:
        replaced = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": text}
        return tokenizer | {"decoder": {"type": "Sequence", "decoders": [tokenizer["decoder"], replaced]}}

    return change


# ---- the outlet itself ----------------------------------------------------------------------------------------------


def test_a_sequence_in_pieces_is_no_sequence() -> None:
    stream = io.StringIO()
    outlet = Outlet(stream)
    for c in HOSTILE:
        print(c, end="", file=outlet)  # type: ignore[call-overload]
    outlet.writelines(["\x1b", "]0;", "x\x07\n"])
    assert obeyed(stream.getvalue()) == ""
    assert stream.getvalue().startswith(SHOWN)
    assert stream.getvalue().endswith("\\x1b]0;x\\x07\n")


def test_there_is_no_way_past_it() -> None:
    outlet = Outlet(io.TextIOWrapper(io.BytesIO()))
    for name in ("buffer", "detach"):
        with pytest.raises(AttributeError, match=name):
            getattr(outlet, name)
    assert behind(Outlet(Outlet(sys.__stdout__))) is sys.__stdout__  # type: ignore[arg-type]


PRINTING = f"""
import logging, sys, threading, traceback, warnings
import typer
from oss_tools.cli import main as cli
TITLE = {TITLE!r}

def fails():
    raise ValueError(TITLE)

def load(verb):
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    @app.command(verb)
    def run() -> None:
        exec(WAY)
    return typer.main.get_command(app)

WAY = sys.argv.pop(1)
cli.load = load
cli.main()
"""


@pytest.mark.parametrize(
    ("way", "status"),
    [
        ("print(TITLE)", 0),
        ("print(TITLE, file=sys.stderr)", 0),
        ("sys.stdout.writelines([TITLE])", 0),
        ("typer.echo(TITLE); typer.echo(TITLE, err=True)", 0),
        ("warnings.warn(TITLE)", 0),
        ("logging.warning(TITLE)", 0),
        ("logging.basicConfig(); logging.getLogger('x').error('%s', TITLE)", 0),
        ("thread = threading.Thread(target=fails); thread.start(); thread.join()", 0),
        ("try: fails()\nexcept ValueError: traceback.print_exc()", 0),
        ("fails()", 70),
        ("raise OSError(2, 'No such file', TITLE)", 2),
        ("raise MemoryError(TITLE)", 3),
        ("raise typer.BadParameter(TITLE)", 2),
        ("import rich.console; rich.console.Console(stderr=True).print(TITLE, markup=False)", 0),
        ("import io; io.TextIOWrapper(sys.stdout.buffer).write(TITLE)", 70),
    ],
)
def test_every_way_of_printing_goes_through(way: str, status: int) -> None:
    shown, found = on_terminal(way, "inspect", program=PRINTING)
    assert found == status, shown
    assert TITLE not in shown
    assert "\x07" not in shown
    assert SHOWN in shown or "buffer" in way or "rich" in way  # rich takes a bell away itself


def test_in_a_terminal_that_knows_ascii_only_nothing_fails() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for way in ("print(TITLE + chr(0xE4) + chr(0xDCFF))", "raise typer.BadParameter(TITLE + chr(0xE4))"):
        shown, status = on_terminal(way, "inspect", program=PRINTING, env=ascii_only)
        assert SHOWN in shown
        assert "\\xe4" in shown
        assert obeyed(shown) == ""
        assert status in (0, 2)


def test_the_end_of_a_library_leaves_no_escape_sequence() -> None:
    shown, _ = on_terminal("generate", "tiny", QUESTION, "-q", given="")
    assert shown == "85\r\n"


def test_a_prompt_has_line_editing() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "oss_tools", "chat", "tiny", "-q"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)

    shown = b""

    def until(wanted: bytes) -> None:
        """Waits for it and for the prompt behind it: what is typed before that, the terminal itself takes."""
        nonlocal shown
        while wanted not in shown or b"> " not in shown[shown.index(wanted) + len(wanted) :]:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 1 << 16)
        shown = b""

    try:
        until(b"")
        os.write(ours, b"What is 47 + 39?\x1b[D\x7f8\n")  # one to the left, the 9 away, 8
        until(b"\r\n85\r\n")
        os.write(ours, b"\x04")  # Ctrl-D
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("names") / f"x{HOSTILE}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "{}"),
        ("inspect", "{}/no"),
        ("fit", "{}", "--bandwidth", "10GB"),
        ("verify", "{}", "{}/config.json"),
        ("convert", "{}", "{}/../y\x1b]0;TAKEN\x07.gguf"),
        ("requantize", "{}", "{}/../z\x1b]0;TAKEN\x07", "--recipe", "int8"),
        ("synth", "llama-tiny", "{}/../s\x1b]0;TAKEN\x07"),
        ("report", "{}"),
        ("chat", "{}/no"),
        ("generate", "{}", QUESTION, "--device", "\x1b]0;TAKEN\x07"),
    ],
    ids=lambda arguments: "-".join(arguments)[:20],
)
def test_names_of_folders(arguments: tuple[str, ...], named: Path) -> None:
    shown, status = on_terminal(*(a.replace("{}", str(named)) for a in arguments))
    assert status in (0, 2), shown
    assert obeyed(shown) == ""
    assert SHOWN in shown


def test_names_in_json(named: Path) -> None:
    shown = harmless("inspect", named, "--json", says=IN_JSON)
    assert json.loads(shown)["path"] == str(named)


@pytest.mark.parametrize("verb", ["inspect", "convert", "generate"])
def test_names_of_tensors(verb: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    rename_tensors(folder / "model.safetensors", lambda name: f"{name}{HOSTILE}\noss-tools: all is well")
    more = {"convert": (tmp_path / "x.gguf",), "generate": ("Hi",)}
    harmless(verb, folder, *more.get(verb, ()), status=2, lines=1)


@pytest.mark.parametrize("key", ["model_type", "hidden_size", f"unknown{HOSTILE}\nRemarks"])
def test_fields_of_a_configuration(key: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: HOSTILE}))
    shown = harmless("inspect", folder, status=0 if "unknown" in key else 2)
    assert shown.splitlines().count("Remarks") <= 1


def test_words_of_the_command_line_and_of_the_environment() -> None:
    harmless("inspect", f"--x{HOSTILE}", status=2)
    harmless(f"x{HOSTILE}", status=2)
    harmless("synth", "llama-tiny", "x", "--shard-size", HOSTILE, status=2)
    harmless("download", f"owner/{HOSTILE}", status=2, lines=1)
    harmless("download", "owner/name", env={"HF_ENDPOINT": HOSTILE}, status=2, lines=1)
    harmless("download", f"https://localhost:1/{HOSTILE}.gguf", status=2, lines=1)


@pytest.mark.slow
def test_recipes_and_tools(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    hostile = json.dumps(HOSTILE)
    file.write_text(f"rules: [{{role: {hostile}, format: {hostile}}}]")
    harmless("requantize", "tiny", tmp_path / "y", "--recipe", file, status=2, lines=1)
    file.write_text(f"tools: [{{name: {hostile}, command: [x]}}]")
    harmless("chat", "tiny", "--tools", file, status=2, lines=1)
    for text in (f"{hostile}: [", f"? [{hostile}]", f"a: *{TITLE}", f"!{TITLE} x"):
        file.write_text(text)
        harmless("requantize", "tiny", tmp_path / "y", "--recipe", file, status=2, says="cannot be read", lines=1)


# ---- a hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    with serving() as running:
        proxies = {name: "" for name in os.environ if "proxy" in name.lower()}
        yield running, {"HF_ENDPOINT": running.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"} | proxies


def test_names_of_a_hub_s_files(hub: tuple[Hub, dict[str, str]], tiny_llama: Path, tmp_path: Path) -> None:
    server, environment = hub
    server.add_folder("a/b", tiny_llama)
    server.repos["a/b"][f"x{HOSTILE}.safetensors"] = server.repos["a/b"]["config.json"]
    shown, status = on_terminal("download", "a/b", "--to", tmp_path / "x", env=environment)
    assert status in (0, 2), shown
    assert obeyed(shown) == ""
    assert TITLE not in shown


@pytest.mark.parametrize("status", [401, 404, 410, 418])
def test_what_a_hub_says(status: int, hub: tuple[Hub, dict[str, str]], tmp_path: Path) -> None:
    server, environment = hub
    server.add("a/b", {})
    words = {"X-Error-Message": TITLE, "X-Error-Code": TITLE, "X-Request-Id": TITLE, "Content-Type": "application/json"}
    server.faults.append(Fault("", "status", times=100, status=status, headers=words))
    shown, found = on_terminal("download", "a/b", "--to", tmp_path / "x", env=environment)
    assert found in (2, 3), shown
    assert obeyed(shown) == ""
    assert len(shown.splitlines()) == 1


# ---- a grader, and tools --------------------------------------------------------------------------------------------


class RudeGrader(ScriptedGrader):
    """Refuses each request in hostile words."""

    def _act(self, handler: Any, action: Any, body: dict[str, Any]) -> None:
        self._send(handler, 403, {"error": {"message": f"{HOSTILE}\noss-tools: all is well"}}, {"X-Error-Message": TITLE})


@pytest.mark.slow
def test_what_a_grader_says(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    write_examples(tmp_path, [example(0, [("polite", 2, ["axis:accuracy"])])])
    with grading(RudeGrader()) as server:
        asked = ("--task", "healthbench", "--data", tmp_path, "--max-tokens", 200, "--quiet")
        harmless("eval", "tiny", *asked, "--grader-url", server.url, "--grader-model", HOSTILE, status=2, lines=1)


def test_what_a_tool_says(tmp_path: Path) -> None:
    tool = {
        "name": "calculator",
        "description": "Evaluates an arithmetic expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        "command": ["printf", "%b", "\\033]0;TAKEN\\007\\0302\\0233J"],  # C1 as UTF-8
    }
    file = tmp_path / "tools.yaml"
    file.write_text(json.dumps({"tools": [tool]}))
    shown = harmless("chat", "tiny", "--tools", file, given=f"{QUESTION}\n")
    assert "\\x9bJ" in shown


# ---- templates and models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["chat", "generate"])
def test_what_a_template_says(verb: str, tmp_path: Path) -> None:
    template = f"{{{{ raise_exception('{IN_TEMPLATE}\noss-tools: all is well') }}}}"
    folder = copied(tmp_path / "model", template, no_harmony)
    if verb == "chat":
        harmless("chat", folder, "-q", given="Hi\n", lines=1)
    else:
        harmless("generate", folder, "Hi", "-q", status=2, lines=1)


def test_what_a_template_is_called(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    names = [{"name": HOSTILE, "template": "x"}, {"name": f"{HOSTILE}2", "template": "x"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": names}))
    shown, status = on_terminal("inspect", folder)
    assert status in (0, 2), shown
    assert obeyed(shown) == ""


@pytest.mark.parametrize("more", [("--raw",), ("--show-analysis",), ("--json",)], ids=lambda more: more[0])
def test_what_a_model_says(more: tuple[str, ...], tmp_path: Path) -> None:
    folder = copied(tmp_path / "model", change=says(HOSTILE))
    harmless("generate", folder, QUESTION, "-q", *more, says=IN_JSON if "--json" in more else SHOWN)


def test_what_a_model_says_in_a_chat_and_what_is_saved_of_it(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model", change=says(HOSTILE))
    shown = harmless("chat", folder, given=f"{QUESTION}\n/save {tmp_path}/said.json\n/x{HOSTILE}\n")
    assert "saved to" in shown
    text = (tmp_path / "said.json").read_text(encoding="utf-8")
    assert obeyed(text) == ""
    assert HOSTILE in json.loads(text)["messages"][-1]["content"]


def test_what_a_plain_model_says(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model", "{{ messages[0].content }}", lambda t: says(HOSTILE)(no_harmony(t)))
    harmless("generate", folder, QUESTION, "-q", "-n", 30)
    harmless("chat", folder, "-q", "-n", 30, given=f"{QUESTION}\n")


@pytest.mark.slow
def test_a_file_gets_the_model_s_very_text(tmp_path: Path) -> None:
    text = "\x1b[1m7\r\n👨‍👩‍👧\u200f\x07"
    folder = copied(tmp_path / "model", change=says(text))
    command = [sys.executable, "-m", "oss_tools", "generate", folder, QUESTION, "-n", "40"]
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [*command, "--raw"], stdout=out, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
    assert done.returncode == 0
    assert obeyed(done.stderr.decode()) == ""
    written = (tmp_path / "out").read_bytes().decode()
    assert text in written
    asked = json.loads(subprocess.check_output([*command, "--raw", "--json"], env=os.environ | {"PYTHONPATH": str(ROOT)}))
    assert written == asked["text"] + "\n"


# ---- what is written to be opened -----------------------------------------------------------------------------------


def test_pages_show_what_a_record_holds(tmp_path: Path) -> None:
    raw = json.loads((ROOT / "tests" / "report" / "sample-comparison.json").read_text(encoding="utf-8"))
    raw["model"] = f"model {HOSTILE}"
    raw["environment"]["machine"]["cpu"] = HOSTILE
    record = tmp_path / "record.json"
    record.write_text(json.dumps(raw))
    files = [tmp_path / name for name in ("page.html", "page.md", "gate.xml")]
    shown = harmless(
        "report", record, "--gate", "default", "--html", files[0], "--markdown", files[1], "--junit", files[2], status=1
    )
    assert shown
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert visible(text) == text, file.name
        assert "TAKEN" in text, file.name
    for option in ("--html", "--markdown", "--junit"):
        harmless("report", record, option, "-", says="TAKEN")


@pytest.mark.slow
def test_records_of_a_model_with_a_hostile_name_that_says_hostile_words(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    folder = copied(tmp_path / f"x{HOSTILE}", change=says(HOSTILE))
    harmless("eval", folder, "--task", "math_smoke", "--limit", 1, "--output", tmp_path / "out", "--quiet")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    texts = [file.read_text(encoding="utf-8") for file in files]
    assert all(visible(text) == text for text in texts)
    assert sum(IN_JSON in text for text in texts) >= 2, "the record, and the answers"


# ---- bars -----------------------------------------------------------------------------------------------------------

BARS = f"""
import sys
from oss_tools.cli import _outlet
from oss_tools.cli._bars import spinner
from oss_tools.cli._output import counted, progress, remark

_outlet.install()
before = sys.stdout, sys.stderr
names = [{HOSTILE!r}, "a[/b].gguf", "[link=https://example.org]c[/link]", "two\\nlines"]
for shown in (progress({{name: 10 for name in names}}), counted()):
    with shown as advance:
        for name in names:
            advance(name, 10) if shown.gen.__name__ == "progress" else advance(name, 5, 10)
            print("OUT", {HOSTILE!r})
            remark("ERR " + {HOSTILE!r})
    assert (sys.stdout, sys.stderr) == before
with spinner() as say:
    for name in names:
        say(name)
        remark("ERR " + {HOSTILE!r})
assert (sys.stdout, sys.stderr) == before
print("done")
"""


def test_bars_show_names_and_lines_between_them() -> None:
    shown, status = on_terminal(program=BARS)
    assert status == 0, shown
    assert obeyed(shown) == ""
    for name in (SHOWN, "a[/b].gguf", "[link=https://example.org]c[/link]", "two\\nlines"):
        assert name in shown
    assert shown.count("OUT") == 8
    assert shown.count("ERR") == 12
    assert "\x1b[?25l" in shown, "there are bars"
    assert shown.endswith("done\r\n")
