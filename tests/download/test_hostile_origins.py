"""Hubs that attack: where the token goes, and whom their answers would have us ask."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Handler, Hub

from oss_tools.download import library, web
from oss_tools.download.web import Web
from oss_tools.errors import BadSource, OssToolsError
from oss_tools.harness.hub import token_stays
from tests.download.conftest import Run
from tests.download.hostile_hub import FILES, REPO, TOKEN, instead, listed, tokens

pytestmark = pytest.mark.usefixtures("with_a_token")


class Elsewhere:
    """A client whose requests go nowhere: `answers` say, by address, where they are sent on."""

    def __init__(self, answers: dict[str, str]) -> None:
        library_of_client = sys.modules[type(library.get_session()).__module__.partition(".")[0]]
        self.sent: list[tuple[str, str | None]] = []

        def handle(request: Any) -> Any:
            self.sent.append((str(request.url), request.headers.get("Authorization")))
            target = answers.get(str(request.url))
            headers = {"Location": target} if target is not None else {"Content-Range": "bytes 0-0/1"}
            status = 302 if target is not None else 206
            return library_of_client.Response(status, headers=headers, stream=library_of_client.ByteStream(b"x"))

        self.client = library_of_client.Client(transport=library_of_client.MockTransport(handle))


@pytest.mark.parametrize(
    "target",
    [
        "https://hub.example:8443/x",  # another port
        "https://cdn.hub.example/x",  # a host below
        "https://example/x",
        "https://hub.example.evil.example/x",
        "https://hub.example./x",
        "//evil.example/x",
        "https://hub.example%2eevil.example/x",
    ],
)
def test_the_token_goes_to_one_origin(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere({"https://hub.example/a": target})
    monkeypatch.setattr(web, "get_session", lambda: elsewhere.client)
    try:
        Web("https://hub.example").read("https://hub.example/a", 0, 1)
    except OssToolsError:
        assert len(elsewhere.sent) == 1
    assert elsewhere.sent[0] == ("https://hub.example/a", f"Bearer {TOKEN}")
    assert [token for _, token in elsewhere.sent[1:]] in ([], [None])


@pytest.mark.parametrize("target", ["/b", "https://HUB.example/b", "https://hub.example:443/b"])
def test_the_same_origin_in_other_words_is_the_hub(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere({"https://hub.example/a": target})
    monkeypatch.setattr(web, "get_session", lambda: elsewhere.client)
    Web("https://hub.example").read("https://hub.example/a", 0, 1)
    assert [token for _, token in elsewhere.sent] == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://hub.example/b", "redirects from https to http://hub.example/b; refused"),
        ("https://me:word@hub.example/b", "a user name or password"),
        ("https://hub.example\\@evil.example/b", "a user name or password"),
        ("file:///etc/passwd", "not an address|from https to file"),
        ("http://[::1/b", "no address"),
        ("https://hub.example:99999/b", "its port is no number"),
    ],
)
def test_redirects_that_are_refused(target: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere({"https://hub.example/a": target})
    monkeypatch.setattr(web, "get_session", lambda: elsewhere.client)
    with pytest.raises(BadSource, match=said) as refused:
        Web("https://hub.example").read("https://hub.example/a", 0, 1)
    assert len(elsewhere.sent) == 1
    assert "word" not in str(refused.value).replace("password", "")


def test_the_token_does_not_follow_the_api_elsewhere(hub: Hub) -> None:
    def moved(handler: Handler) -> None:
        path = f"{hub.cdn}{handler.path}"
        handler.answer(307, b"", {"Location": path}) if handler.name == "hub" else handler.json({"sha": COMMIT})

    instead(hub, "/revision/", moved)
    assert listed(hub).commit == COMMIT
    assert tokens(hub.requests, "cdn") == {None}
    assert tokens(hub.requests, "hub") == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("link", ["{cdn}/api/more?cursor=1", "{cdn}/api/more", "//{cdn}/x?y", "/etc/passwd", "file:///x"])
def test_nothing_is_asked_of_a_server_that_a_listing_names(link: str, hub: Hub) -> None:
    def page(handler: Handler) -> None:
        more = {"Link": f'<{link.format(cdn=hub.cdn)}>; rel="next"'}
        handler.json([{"type": "file", "path": "a", "size": 1, "oid": "b" * 40}], {} if "cursor=" in handler.path else more)

    instead(hub, "/tree/", page)
    with contextlib.suppress(BadSource):  # what has a cursor is asked of the hub itself
        listed(hub)
    assert {request.server for request in hub.requests} == {"hub"}
    assert all(request.path.startswith("/api/models/") for request in hub.requests)


def test_a_netrc_is_not_read(hub: Hub, run: Run, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password word\n")
    hub.add(REPO, FILES)
    places = {"NETRC": str(tmp_path / ".netrc"), "HOME": str(tmp_path)}
    assert run("download", REPO, "--to", "here", env=places).returncode == 0
    assert tokens(hub.requests, "hub") == tokens(hub.requests, "cdn") == {None}


def test_the_hub_is_not_asked_what_to_look_for_in_the_environment(hub: Hub, run: Run) -> None:
    def patterns(handler: Handler) -> None:
        handler.json({"standardEnvVars": [], "harnesses": {"found-it": {"envVars": {"MY_SECRET": "12345"}}}})

    instead(hub, "/api/agent", patterns)
    assert run("download", REPO, "--to", "here", env={"MY_SECRET": "12345", "HF_HUB_DISABLE_TELEMETRY": ""}).returncode == 0
    assert not [request.path for request in hub.requests if "/api/agent" in request.path]
    assert not [request for request in hub.requests if "found-it" in str(request.headers)]


@pytest.mark.parametrize("token", ["hf_sécret", "hf_one hf_two", "hf_one\x7f", "hf_one\x1b[2J"])
def test_a_token_that_cannot_be_one_is_not_shown(token: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadSource, match="characters that no token has") as refused:
        Web(hub.url)
    assert "hf_" not in str(refused.value)


def test_a_token_that_travels_in_clear_is_remarked() -> None:
    said: list[str] = []
    for endpoint in ("http://127.0.0.1:1", "http://localhost", "http://[::1]:5", "https://mirror.example"):
        Web(endpoint, said.append)
    assert said == []
    Web("http://mirror.example/hub", said.append)
    assert said == [
        "http://mirror.example/hub: the token for the hub goes there without encryption; use https, or unset HF_TOKEN"
    ]


OTHERS = """
import sys
from huggingface_hub import HfApi
from oss_tools.harness.hub import token_stays
try:
    with token_stays():
        list(HfApi().list_repo_tree("someone/model", recursive=True))
except Exception as error:
    print(type(error).__name__)
"""


def test_the_token_stays_when_data_sets_are_fetched_by_other_libraries(hub: Hub, environment: dict[str, str]) -> None:
    link = {"Link": f'<{hub.cdn}/api/more>; rel="next"'}
    instead(hub, "/tree/", lambda handler: handler.json([], link))
    subprocess.run([sys.executable, "-c", OTHERS], env=environment | {"HF_TOKEN": TOKEN}, check=True, timeout=100)
    assert tokens(hub.requests, "cdn") == {None}
    assert f"Bearer {TOKEN}" in tokens(hub.requests, "hub")


def test_afterwards_other_hubs_get_their_token_again(hub: Hub) -> None:
    with token_stays():
        pass
    hub.add(REPO, FILES)
    listed(hub)  # which is not the hub of the environment
    assert tokens(hub.requests, "hub") == {f"Bearer {TOKEN}"}
