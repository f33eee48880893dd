"""Who may call: names, origins, keys, addresses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from serving import Running

from oss_tools.cli.serve import named, read_key
from oss_tools.errors import BadRequest
from oss_tools.serve.settings import Settings, is_loopback

KEY = "a-key-of-some-length"
ANSWER = "<|channel|>final<|message|>Yes.<|return|>"


def status(client: httpx.Client, path: str = "/v1/models", **headers: str) -> int:
    return client.get(path, headers=headers).status_code


def test_other_names_are_refused(server: Running) -> None:
    """A page at evil.example whose name is changed to 127.0.0.1 sends its own name."""
    port = server.address.rsplit(":", 1)[1]
    with server.client() as client:
        assert status(client) == 200
        assert status(client, Host=f"localhost:{port}") == 200
        assert status(client, Host=f"[::1]:{port}") == 200
        for name in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "@127.0.0.1@x",
        ):
            assert status(client, Host=name) == 403, name


def test_pages_of_other_sites_are_refused(server: Running, scripted: Callable[..., Running]) -> None:
    with server.client() as client:
        assert status(client, Origin=server.address) == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", server.address.replace("http", "file")[:-1]):
            found = client.post("/v1/completions", headers={"Origin": origin}, json={"prompt": "a"})
            assert found.status_code == 403, origin
            assert "access-control-allow-origin" not in found.headers
    named_origin = "https://ours.example"
    ours = scripted(ANSWER, settings=Settings(port=0, origins=(named_origin,)))
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with ours.client() as client:
        assert (
            client.get("/v1/models", headers={"Origin": named_origin}).headers["access-control-allow-origin"] == named_origin
        )
        assert client.options("/v1/models", headers={"Origin": named_origin, **preflight}).status_code == 200
        assert client.options("/v1/models", headers={"Origin": "https://evil.example", **preflight}).status_code == 400


def test_a_key_is_asked_for(scripted: Callable[..., Running]) -> None:
    server = scripted(ANSWER, settings=Settings(port=0, api_key=KEY))
    with server.client() as client:
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY},
                        {"Authorization": f"Basic {KEY}"}, {"x-api-key": KEY[:-1]}):  # fmt: skip
            assert status(client, **headers) == 401, headers
            assert status(client, "/metrics", **headers) == 401
            assert status(client, "/v1/none", **headers) == 401  # which addresses there are is nobody's business either
        assert status(client, "/health") == 200
        assert status(client, Authorization=f"Bearer {KEY}") == 200
        assert status(client, **{"x-api-key": KEY}) == 200
        found = client.post("/v1/messages", json={})
        assert (found.status_code, found.json()["error"]["type"]) == (401, "authentication_error")
        odd = client.get("/v1/models", headers=[(b"authorization", b"Bearer \xff\xfe")])
        assert odd.status_code == 401


def test_other_machines_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(BadRequest, match="--api-key-file"):
            Settings(host=host)
        Settings(host=host, api_key=KEY)
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "localhost.example", "10.0.0.1")))


@pytest.mark.parametrize("text", ["", " \n", "two words", "schl\u00fcssel"])
def test_a_key_is_one_word(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadRequest, match="one word"):
        read_key(file)
    file.write_text(f"{KEY}\n")
    assert read_key(file) == KEY


def test_models_have_names_of_their_own() -> None:
    assert list(named(["tiny"])) == ["tiny"]
    assert list(named(["a=tiny", "b=tiny"])) == ["a", "b"]
    with pytest.raises(BadRequest, match="two models are named 'tiny'"):
        named(["tiny", "tiny"])
