"""Conversations with a simulated user: a small domain in tau2's form, in a process where a stand-in for tau2 is installed.

tests/interop/test_tau2_package.py plays the same with tau2 itself.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.errors import BadRecipe, BadSource, MissingPackage, Unreachable
from oss_tools.harness.run import Settings, evaluate
from oss_tools.harness.subjects import EndpointSubject
from oss_tools.harness.tasks import load_tasks
from oss_tools.harness.tau2.child import Child
from oss_tools.harness.tau2.cost import cost
from oss_tools.harness.tau2.documents import splits
from oss_tools.harness.tau2.simulation import Simulation, simulating_with
from tests.commands import oss_tools
from tests.endpoints.chat_server import call, completion, serving
from tests.harness.tau2_players import MODEL, USER, players, reference

HERE = Path(__file__).parent / "tau2_small"
CHECKOUT, TASK = HERE / "checkout", str(HERE / "tau2_library.yaml")
TASKS = json.loads((CHECKOUT / "data/tau2/domains/library/tasks.json").read_text())
IDS = ["lend", "renew", "refuse"]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A program that is this Python with the stand-in installed."""
    program = tmp_path_factory.mktemp("bin") / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{HERE / "stand_in"}" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return str(program)


def play(server, python, output, resume=False, **user):
    """The record, the log's outcomes by task, and what the user's side took."""
    subject = EndpointSubject(Endpoint(server.url, MODEL, tries=2))
    with (
        Simulation(Endpoint(server.url, USER, tries=2, **user), python, CHECKOUT) as simulation,
        simulating_with(simulation),
    ):
        record = evaluate(subject, [TASK], Settings(), model={}, data=CHECKOUT, output=output, resume=resume)
    subject.close()
    found = record["tasks"]["tau2_library"]
    lines = (output / "samples-tau2_library.jsonl").read_text().splitlines()
    outcomes = {row["doc"]["id"]: row["answers"][0]["outcome"] for row in map(json.loads, lines)}
    return found, outcomes, simulation.tally


def lazy(task, mine):
    return "I am afraid that I cannot. It is two weeks." if len(mine) < 1 else "No."


def wrong(task, mine):
    return [("lend", {"reader": "Bob", "title": "Emma"})] if not mine else "It is two weeks. Here it is."


@pytest.mark.parametrize(
    ("agent", "correct", "state", "told"),
    [
        (reference, [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        (lazy, [0, 0, 1], [0, 0, 1], [1, 1, 1]),
        (wrong, [0, 0, 0], [0, 0, 0], [1, 1, 1]),
    ],
)
def test_a_conversation_is_graded_by_the_state_that_it_leaves(tmp_path, python, agent, correct, state, told):
    with serving(players(TASKS, agent)) as server:
        found, outcomes, tally = play(server, python, tmp_path)
    items = found["items"]
    assert [items[name] for name in ("correct", "state", "told", "ended")] == [correct, state, told, [1, 1, 1]]
    assert items["unjudged"] == [0, 1, 0]
    assert list(outcomes) == IDS
    assert all(outcome["ended"] == "user_stop" for outcome in outcomes.values())
    asked = [body for _, body in server.requests if body["model"] == USER]
    assert tally.requests == len(asked)
    assert tally.tokens == 7 * len(asked)


def test_each_side_sees_what_is_its_own(tmp_path, python):
    with serving(players(TASKS, reference)) as server:
        _, outcomes, _ = play(server, python, tmp_path)
    for _, body in server.requests:
        names = [tool["function"]["name"] for tool in body["tools"]]
        system = body["messages"][0]["content"]
        if body["model"] == USER:
            assert names == ["renew_card"]
            assert system.startswith("You are a reader.")
            assert "policy" not in system
        else:
            assert names == ["lend", "take_back"]
            assert "You are a reader" not in json.dumps(body)
            assert "Lend books to readers" in json.dumps(body["messages"][0])
    said = outcomes["renew"]["said"]
    who = [(m["role"], [c["name"] for c in m.get("tool_calls") or []], m.get("requestor")) for m in said]
    assert who[0] == ("assistant", [], None)
    assert ("user", ["renew_card"], None) in who
    assert ("tool", [], "user") in who
    assert who.index(("user", ["renew_card"], None)) < who.index(("assistant", ["lend"], None))


def test_a_run_is_resumed_without_a_question(tmp_path, python):
    with serving(players(TASKS, reference)) as server:
        first, *_ = play(server, python, tmp_path)
        asked = len(server.requests)
        again, _, tally = play(server, python, tmp_path, resume=True)
        assert len(server.requests) == asked
    assert tally.requests == 0
    assert again["items"] == first["items"]


def test_another_user_is_another_run(tmp_path, python):
    with serving(players(TASKS, reference)) as server:
        play(server, python, tmp_path)
        asked = len(server.requests)
    with serving(players(TASKS, reference)) as other:
        play(other, python, tmp_path, resume=True)
        assert len(other.requests) == asked


def broken_off(how):
    """A server whose user, or model, goes wrong in a way."""
    right = players(TASKS, reference)

    def answer(path, body):
        said = [message for message in body["messages"] if message["role"] == "assistant"]
        if how == "silent user" and body["model"] == USER and said:
            return completion("")
        if how == "silent model" and body["model"] == MODEL:
            return completion("")
        if how == "endless talk" and body["model"] == USER and said:
            return completion("And then?")
        if how == "endless talk" and body["model"] == MODEL:
            return completion("And then?")
        if how == "errors" and body["model"] == MODEL:
            return completion(None, "tool_calls", tool_calls=[call("no_such_tool", {}, len(said))])
        if how == "endless calls" and body["model"] == MODEL:
            return completion(None, "tool_calls", tool_calls=[call("take_back", {"title": "Emma"}, len(said))])
        if how == "broken arguments" and body["model"] == MODEL and len(said) < 2:
            return completion(None, "tool_calls", tool_calls=[call("lend", "{", len(said))])
        return right(path, body)

    return answer


@pytest.mark.parametrize(
    ("how", "ended"),
    [
        ("silent user", "user_error"),
        ("silent model", "agent_error"),
        ("errors", "too_many_errors"),
        ("endless calls", "max_steps"),
        ("endless talk", "max_steps"),
    ],
)
def test_what_ends_otherwise_earns_nothing(tmp_path, python, monkeypatch, how, ended):
    monkeypatch.setattr("oss_tools.harness.tau2.play.MAX_STEPS", 30)
    with serving(broken_off(how)) as server:
        found, outcomes, _ = play(server, python, tmp_path)
    assert {outcome["ended"] for outcome in outcomes.values()} == {ended}
    assert found["items"]["correct"] == found["items"]["ended"] == [0, 0, 0]
    assert all(outcome["rewards"] is None for outcome in outcomes.values())


def test_arguments_that_are_no_json_are_an_error_of_the_tool(tmp_path, python):
    with serving(broken_off("broken arguments")) as server:
        _, outcomes, _ = play(server, python, tmp_path)
    assert any(m.get("error") for m in outcomes["lend"]["said"])


def test_a_user_that_cannot_be_reached_ends_the_run_and_the_rest_is_kept(tmp_path, python):
    right, down = players(TASKS, reference), {"now": True}

    def answer(path, body):
        if (
            down["now"]
            and body["model"] == USER
            and "keep a book" in body["messages"][0]["content"]
            and len(body["messages"]) > 3
        ):
            return 503
        return right(path, body)

    with serving(answer) as server:
        with pytest.raises(Unreachable, match="503"):
            play(server, python, tmp_path)
        down["now"] = False
        found, *_ = play(server, python, tmp_path, resume=True)
    assert found["items"]["correct"] == [1, 1, 1]


# ---- what is read and run -------------------------------------------------------------------------------------------


def documents(checkout, domain="library"):
    return splits(domain=domain, config_source=TASK, data=str(checkout))["test"]


def test_tasks_of_the_base_split_are_read_and_nothing_is_run(tmp_path):
    copy = shutil.copytree(CHECKOUT, tmp_path / "copy")
    (copy / "src" / "tau2").mkdir(parents=True)
    (copy / "src" / "tau2" / "__init__.py").write_text("raise SystemExit('run')")
    assert [doc["id"] for doc in documents(copy)] == IDS
    one, other = documents(copy)[0], documents(CHECKOUT)[0]
    assert one == other  # wherever the checkout lies
    (copy / "data/tau2/domains/library/split_tasks.json").unlink()
    assert len(documents(copy)) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "tasks.json"),
        ("3", "task 1: is none of tau2's"),
        ("[3]", "task 1: is none of tau2's"),
        ('[{"id": 3, "user_scenario": {}}]', "task 1: is none of tau2's"),
        ('[{"id": "lend", "user_scenario": {}, "initial_state": {"message_history": [{}]}}]', "in the midst"),
        ('[{"id": "other", "user_scenario": {}}]', "no tasks of the split"),
        ("[" * 100_000, "tasks.json"),
    ],
)
def test_what_is_no_checkout_is_refused(tmp_path, content, said):
    copy = shutil.copytree(CHECKOUT, tmp_path / "copy")
    (copy / "data/tau2/domains/library/tasks.json").write_text(content)
    with pytest.raises(BadSource, match=said):
        documents(copy)


@pytest.mark.parametrize("name", ["tau2_retail", "tau2_airline", "tau2_telecom"])
def test_without_a_checkout_a_line_says_what_is_wanted(name, tmp_path):
    with pytest.raises(BadSource, match="--data give a checkout of"):
        load_tasks([name], tmp_path)


def test_without_a_user_a_line_says_who_is_wanted(tmp_path):
    with serving(players(TASKS, reference)) as server:
        subject = EndpointSubject(Endpoint(server.url, MODEL))
        with pytest.raises(BadRecipe, match="--user-url"):
            evaluate(subject, [TASK], Settings(), model={}, data=CHECKOUT)
        subject.close()


def test_a_python_without_tau2_is_one_line(tmp_path):
    child = Child(sys.executable, "library", CHECKOUT)
    with pytest.raises(MissingPackage, match="--tau2-python"):
        child.ask("open", number=1, task=TASKS[0])
    child.close()
    with pytest.raises(MissingPackage, match="nowhere"):
        Child(str(tmp_path / "nowhere"), "library", CHECKOUT)


def test_a_domain_that_fails_ends_or_hangs_is_one_line(python, tmp_path):
    child = Child(python, "library", CHECKOUT)
    with pytest.raises(BadSource, match="KeyError"):
        child.ask("grade", number=7, messages=[])
    child.ask("open", number=1, task=TASKS[0])
    crash = {"id": "1", "name": "crash", "arguments": {}, "requestor": "assistant"}
    with pytest.raises(BadSource, match="gives no reply"):
        child.ask("call", number=1, call=crash)
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    with pytest.raises(BadSource, match=r"it had 0\.5 s"):
        Child(str(sleeper), "library", CHECKOUT, seconds=0.5).ask("open", number=1, task=TASKS[0])
    babbler = tmp_path / "babbler"
    babbler.write_text("#!/bin/sh\nexec yes\n")
    babbler.chmod(0o755)
    with pytest.raises(BadSource, match="gives no reply"):
        Child(str(babbler), "library", CHECKOUT).ask("open", number=1, task=TASKS[0])


def test_no_key_of_an_api_reaches_the_domain(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    shower = tmp_path / "shower"
    shower.write_text("#!/bin/sh\nread line\nenv >&2\n")
    shower.chmod(0o755)
    child = Child(str(shower), "library", CHECKOUT)
    log = child._log
    monkeypatch.setattr(child, "close", lambda: None)
    with pytest.raises(BadSource):
        child.ask("open", number=1, task=TASKS[0])
    log.seek(0)
    said = log.read().decode()
    assert f"TAU2_DATA_DIR={CHECKOUT / 'data'}" in said
    assert "sk-secret" not in said
    Child.close(child)


# ---- what it costs, and the command ---------------------------------------------------------------------------------


def test_the_cost_grows_with_the_conversations():
    docs = documents(CHECKOUT)
    one, all_ = cost(docs[:1], CHECKOUT), cost(docs, CHECKOUT)
    assert all_.requests == 3 * one.requests
    assert all_.user_prompt_tokens == 3 * one.user_prompt_tokens
    assert cost([], CHECKOUT).requests == 0


def run(*arguments):
    return oss_tools("eval", *arguments)


def test_the_command_plays_and_says_what_the_user_cost(tmp_path, python):
    user = ["--user-model", USER, "--tau2-python", python, "--user-price", "1,2"]
    with serving(players(TASKS, reference)) as server:
        who = [f"{server.url}#{MODEL}", "--task", TASK, "--data", str(CHECKOUT), "--user-url", server.url]
        done = run(*who, *user, "--json", "--output", str(tmp_path / "run"))
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record["tasks"]["tau2_library"]["scores"]["correct"]["score"] == 1
        assert record["user"]["model"].endswith(USER)
        assert record["user"]["dollars"] > 0
        planned = run(*who, *user, "--dry-run")
    assert "simulated user" in planned.stdout
    assert "its cost" in planned.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--user-url", "http://localhost:1/v1"], "--user-model"),
        (["--user-url", "http://localhost:1/v1", "--user-model", "x", "--task", TASK], "needs --data"),
        (["--user-url", "http://localhost:1/v1", "--user-model", "x", "--ray"], "one machine"),
    ],
)
def test_what_goes_together_is_said(arguments, said):
    done = CliRunner().invoke(app, ["eval", "tiny", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr
