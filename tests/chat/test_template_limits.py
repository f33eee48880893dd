"""Chat templates that take all time, all memory or the process: each ends in one line, and the next one is rendered as ever."""

import os
import shutil
import subprocess
import sys
import threading
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from oss_tools.chat import template_process, template_worker
from oss_tools.chat.template import render
from oss_tools.chat.template_worker import CHARACTERS_A_SECOND
from oss_tools.checkpoints import Metadata
from oss_tools.errors import BadCheckpoint, BadRequest

MESSAGES = [{"role": "user", "content": "Hello"}]
GROWING = "{% set n = namespace(a=[]) %}{% for i in range(99999) %}{% set n.a = [n.a] %}{% endfor %}"
TAKES_MEMORY = {
    "a long text": "{{ ('ab' * 3000000000) | length }}",
    "a long list": "{{ ([0] * 4000000000) | length }}",
    "a text that doubles": "{% set n = namespace(t='a') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "a width": "{{ '{:>9999999999}'.format(1) }}",
    "a width from an argument": "{{ '%*d' % (1999999999, 1) }}",
    "digits behind the point": "{{ '{:.1999999999f}'.format(0.5) }}",
    "an indent of JSON": "{{ messages | tojson(indent=2000000000) }}",
    "a filled text": "{{ 'a'.rjust(2999999999) | length }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(1000000) | length }}",
    "a replacement": "{{ ('a' * 100000).replace('a', 'b' * 100000) | length }}",
    "a join": "{{ (['a'] * 1000000) | join('b' * 100000) | length }}",
    "a translation": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) | length }}",
    "a batch": "{{ [1] | batch(2000000000, 0) | list | length }}",
}
HOSTILE = {
    # depth
    "conditions in conditions": "{% if true %}" * 5000 + "{% endif %}" * 5000,
    "parentheses": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "negations": "{{ " + "not " * 60000 + "1 }}",
    "a sum of many": "{{ " + "1 + " * 30000 + "1 }}",
    "a macro that calls itself": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "a block within itself": "{% block b %}{{ self.b() }}{% endblock %}",
    "a loop that calls itself": "{% for a in [1] recursive %}{{ loop([a]) }}{% endfor %}",
    "a list in a list": GROWING + "{{ n.a }}",
    "JSON of a list in a list": GROWING + "{{ n.a | tojson }}",
    # other programs, files, objects
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "an object's class": "{{ (lipsum.__globals__)['os'] }}",
    "a format that looks inside": "{{ '{0.__class__.__mro__}'.format(messages)[0] + 1 }}",
}
FOR_EVER = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "a power of a power": "{{ ((3 ** 90000) ** 90000) % 7 }}",
    "slices": "{{ [1] | slice(900000000) | list | length }}",
    "filler text": "{{ lipsum(n=9000000, max=100) | length }}",
    "a long template": "{{ a }}{% if b %}c{% endif %}" * 200_000,
}


def rendered(source: str, messages: Any = MESSAGES, **more: Any) -> str:
    return render(Metadata({}, chat_template=source), messages, **more)


@pytest.mark.skipif(sys.platform == "darwin", reason="the system keeps no limit of memory")
@pytest.mark.parametrize("name", TAKES_MEMORY)
def test_a_template_that_takes_all_memory_is_one_line(name: str) -> None:
    long = "x" * (6 * CHARACTERS_A_SECOND)  # has more seconds, so that memory ends first on a busy machine too
    with pytest.raises(BadCheckpoint, match="cannot be rendered: it needs more than 1024 MiB of memory"):
        rendered(TAKES_MEMORY[name], [{"role": "user", "content": long}])
    assert rendered("{{ messages[0].content }}") == "Hello"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line(name: str) -> None:
    with pytest.raises(BadCheckpoint, match=r"\Athe checkpoint's chat template cannot be rendered: [^\n]{1,500}\Z"):
        rendered(HOSTILE[name])
    assert rendered("{{ messages[0].content }}") == "Hello"


@pytest.mark.parametrize(
    "name", [name if n < 1 else pytest.param(name, marks=pytest.mark.slow) for n, name in enumerate(FOR_EVER)]
)
def test_a_template_without_end_is_one_line(name: str) -> None:
    with pytest.raises(BadCheckpoint, match="it takes too much processor time"):
        rendered(FOR_EVER[name])
    assert rendered("{{ messages[0].content }}") == "Hello"


def test_what_a_template_says_is_one_line_and_not_a_book() -> None:
    with pytest.raises(BadCheckpoint) as caught:
        rendered("{{ raise_exception('first\nsecond ' * 100000) }}")
    assert "first second" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_process_gets_none_of_the_environments_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    real = subprocess.Popen

    def watched(*args: Any, **options: Any) -> Any:
        started.append(options["env"])
        return real(*args, **options)

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(template_process.subprocess, "Popen", watched)
    mine = template_process.TemplateProcess()
    try:
        assert mine.render("{{ 1 }}", {"iso": "2024-01-01", "zone": None, "offset": None}, {}) == "1"
    finally:
        mine.close()
    (environment,) = started
    assert set(environment) <= set(template_process.KEPT)


def test_a_process_that_answers_nonsense_or_nothing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that a template has taken over might."""
    moment = {"iso": "2024-01-01", "zone": None, "offset": None}
    ready = "os.write(1, b'+' + bytes(8)); os.read(0, 8); "
    for answer in (
        "os.write(1, b'=' + b'\\xff' * 8)",
        "os.write(1, b'?' * 9)",
        "os.write(1, b'=\\1' + bytes(7) + b'\\xff')",
        "0",
    ):
        program = tmp_path / "worker.py"
        program.write_text(f"import os; {ready}{answer}")
        monkeypatch.setattr(template_worker, "__file__", str(program))
        mine = template_process.TemplateProcess()
        with pytest.raises(BadCheckpoint, match="chat template cannot be rendered"):
            mine.render("{{ 1 }}", moment, {})
        assert mine._process is None


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "worker.py"
    program.write_text("import os, time; os.write(1, b'+' + bytes(8)); time.sleep(1000)")
    monkeypatch.setattr(template_worker, "__file__", str(program))
    monkeypatch.setattr(template_process, "CLOCK", 0.01)
    with pytest.raises(BadCheckpoint, match="it takes too long"):
        template_process.TemplateProcess().render("{{ 1 }}", {"iso": "2024-01-01", "zone": None, "offset": None}, {})


@pytest.mark.skipif(shutil.which("ps") is None, reason="no program tells of processes")
def test_memory_is_looked_at_where_the_system_keeps_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "worker.py"
    program.write_text("import os, time; os.write(1, b'+' + bytes(8)); a = b'x' * (100 << 20); time.sleep(1000)")
    monkeypatch.setattr(template_worker, "__file__", str(program))
    monkeypatch.setattr(template_process, "WATCHED", True)
    monkeypatch.setattr(template_process, "MEMORY", 64 << 20)
    with pytest.raises(BadCheckpoint, match="it needs more than"):
        template_process.TemplateProcess().render("{{ 1 }}", {"iso": "2024-01-01", "zone": None, "offset": None}, {})


def test_texts_arrive_as_they_are() -> None:
    """Order, halves of surrogate pairs beside each other, letters beyond 16 bits, numbers, nothing."""
    content = "\ud83d" + "\ude00" + "\U000f0000 \x00 é"
    tool = {"z": 1, "a": [1.5, None, True, float("inf")], "é": {"b": 2**70}}
    assert rendered("{{ messages[0].content }}", [{"content": content}]) == content
    assert rendered("{{ tools }}", tools=[tool]) == str([tool])
    assert rendered("{{ tools is none }}{{ documents is none }}{{ other is defined }}") == "TrueTrueFalse"


def test_the_moment_is_the_callers() -> None:
    moment = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    form = "%d %b %Y %H:%M:%S.%f %Z %z"
    assert rendered("{{ strftime_now('" + form + "') }}", now=lambda: moment) == moment.strftime(form)
    plain = moment.replace(tzinfo=None)
    assert rendered("{{ strftime_now('" + form + "') }}", now=lambda: plain) == plain.strftime(form)


def test_a_conversation_that_is_no_json_is_one_line() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for content in (object(), {1, 2}, b"bytes", deep):
        with pytest.raises(BadRequest, match="cannot be given to a chat template"):
            rendered("{{ 1 }}", [{"role": "user", "content": content}])
    while deep:  # else its end is a recursion too
        deep = deep.pop()


def test_threads_get_their_own_texts() -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        for _ in range(20):
            found[number] = rendered("{{ messages[0].content }}", [{"content": str(number)}])
            if found[number] != str(number):
                return

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: str(n) for n in range(8)}


def test_sandboxes_that_can_be_left_are_not_admitted() -> None:
    """CVE-2025-27516, mended in 3.1.6."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(one for group in project["optional-dependencies"].values() for one in group)]
    found = [wanted for wanted in map(Requirement, listed) if wanted.name.lower() == "jinja2"]
    assert found
    assert not any(wanted.specifier.contains("3.1.5") for wanted in found)


ALONE = """
import os, resource, sys
from oss_tools.chat import template, template_process
from oss_tools.checkpoints import Metadata
if sys.platform != "darwin":
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
shared = template_process.SHARED
assert shared._process is None
said = lambda: template.render(Metadata({}, chat_template="{{ messages[0].content }}"), [{"content": "Hello"}])
assert said() == "Hello"
first = shared._process.pid
child = os.fork()
if not child:
    assert shared._process is None
    assert said() == "Hello" and shared._process.pid != first
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert said() == "Hello" and shared._process.pid == first
print(first)
if "die" in sys.argv:
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
"""


def is_running(process: int) -> bool:
    """Also where nobody takes note of an orphan's end, as in some containers."""
    try:
        status = Path(f"/proc/{process}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        os.kill(process, 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


@pytest.mark.parametrize("end", ["leave", "die"])
def test_the_process_is_one_for_all_and_ends_with_its_parent(end: str) -> None:
    """In little address space, and with a fork in between, which has its own."""
    run = subprocess.run([sys.executable, "-c", ALONE, end], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0 if end == "leave" else -9, "")
    for _ in range(600):
        if not is_running(int(run.stdout)):
            return
        threading.Event().wait(0.1)
    pytest.fail("the process is still there")
