"""What is said where the network fails, the server refuses, or the place cannot be written: one line, soon."""

import errno
import os
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from hub_server import Fault, Hub

from oss_tools.download import failures
from oss_tools.download.failures import Transient, in_words
from oss_tools.download.places import Cache, Folder
from oss_tools.download.transfer import RemoteFile
from oss_tools.download.web import Web, retry_after
from oss_tools.errors import BadRequest, BadSource, Unreachable
from tests.download.conftest import Run

pytestmark = pytest.mark.slow

REPO = "someone/model"


@pytest.fixture
def nobody() -> str:
    """An address at which nothing serves."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def one_line(done: subprocess.CompletedProcess, status: int) -> str:
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "[Errno" not in done.stderr
    return done.stderr


# ---- nobody answers -------------------------------------------------------------------------------------------------


def test_a_refused_connection(run: Run, nobody: str) -> None:
    line = one_line(run("download", REPO, env={"HF_ENDPOINT": f"http://{nobody}"}), 3)
    assert f"{REPO}, revision main: {nobody} refuses the connection" in line
    assert "the same command later goes on" in line


def test_a_proxy_that_is_not_there_is_named_without_its_password(run: Run, nobody: str) -> None:
    proxy = {"HF_ENDPOINT": "http://hub.example", "http_proxy": f"http://me:secret@{nobody}", "no_proxy": ""}
    line = one_line(run("download", REPO, env=proxy), 3)
    assert f"the proxy {nobody} on the way to hub.example refuses the connection" in line
    assert "secret" not in line


def test_a_server_that_speaks_no_tls(hub: Hub, run: Run) -> None:
    line = one_line(run("download", REPO, env={"HF_ENDPOINT": hub.url.replace("http:", "https:")}), 3)
    assert "no secure connection: wrong version number" in line


def test_an_endpoint_that_is_no_address(run: Run) -> None:
    assert "it is like https://huggingface.co" in one_line(run("download", REPO, env={"HF_ENDPOINT": "my-mirror"}), 2)


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999/x.gguf", "https://127.0.0.1:port/x.gguf"])
def test_a_port_that_is_none(address: str, run: Run) -> None:
    assert f"{address}: its port is no number from 0 to 65535" in one_line(run("download", address), 2)


@pytest.mark.parametrize(("said", "seconds"), [("7", 7.0), ("\xb2", None), ("9" * 400, None), ("soon", None), ("", None)])
def test_seconds_to_wait_are_a_number(said: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": said}) == seconds


def test_what_was_downloaded_before_is_told_of(hub: Hub, run: Run, nobody: str, tiny_llama: Path) -> None:
    hub.add_folder(REPO, tiny_llama)
    assert run("download", REPO).returncode == 0
    line = one_line(run("download", REPO, env={"HF_ENDPOINT": f"http://{nobody}"}), 3)
    assert "what was downloaded before is " in line
    assert "/models--someone--model/snapshots/" in line


def test_a_name_without_an_address_is_tried_twice_and_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    said: list[str] = []
    pauses: list[float] = []
    monkeypatch.setattr(failures.time, "sleep", pauses.append)
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with pytest.raises(Unreachable, match=r"hub\.example: no address is found for this name: there is no network"):
        Web("http://hub.example", said.append).read("http://hub.example/x", 0, 1)
    assert (len(pauses), said) == (1, [])


def test_a_server_that_has_answered_is_worth_more_patience(hub: Hub) -> None:
    hub.add(REPO, {"x.json": b"{}"})
    web, url = Web(hub.url), f"{hub.url}/{REPO}/resolve/main/x.json"
    tries = []
    for _ in range(2):
        with pytest.raises(Transient) as failure, web.asking(url):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        tries.append(failure.value.tries)
        assert web.read(url, 0, 2)[0] == b"{}"
    assert tries == [2, 6]


class ConnectError(Exception):
    """As the HTTP library wraps what the system says."""


def wrapped(cause: BaseException) -> ConnectError:
    error = ConnectError(str(cause))
    error.__cause__ = cause
    return error


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (untrusted(), "its certificate is not trusted (self-signed certificate); SSL_CERT_FILE names"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "cannot be reached: network is unreachable"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "cannot be reached: no route to host"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "does not answer in time"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "cannot be reached: connection reset by peer"),
    ],
)
def test_causes_in_words(cause: BaseException, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "getproxies", dict)
    assert in_words(wrapped(cause), "https://hub.example:8443/x").startswith("hub.example:8443")
    assert said in in_words(wrapped(cause), "https://hub.example:8443/x")


# ---- the server refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {}, "there is no such repository, or it is private"),
        (401, {"X-Error-Code": "GatedRepo"}, "gated: accept its terms"),
        (403, {}, "access refused (403)"),
        (404, {}, "not found (404); check the name"),
        (407, {}, "the proxy wants a name and a password"),
        (451, {}, "the server answers 451"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    status: int, headers: dict[str, str], said: str, hub: Hub, run: Run
) -> None:
    hub.add(REPO, {"model.safetensors": bytes(100)})
    for where in ("/revision/", "/resolve/"):
        hub.faults = [Fault(where, "status", times=9, status=status, headers=headers)]
        assert said in one_line(run("download", REPO), 2)


def test_refusals_that_name_no_revision() -> None:
    assert "check --revision" in str(failures.refusal(404, "RevisionNotFound", "a/b", has_token=False))
    assert "your token has no access" in str(failures.refusal(403, "GatedRepo", "a/b", has_token=True))
    assert isinstance(failures.refusal(404, "", "a/b", has_token=True), failures.Missing)
    assert isinstance(failures.refusal(418, "", "a/b", has_token=True), BadSource)


# ---- the place ------------------------------------------------------------------------------------------------------

FILE = RemoteFile("config.json", 10, "http://hub/config.json", "0" * 64)


def test_a_read_only_place_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for place in (Folder(tmp_path / "deep" / "here"), Cache(tmp_path / "hub", REPO, "main", "0" * 40)):
        with pytest.raises(BadRequest, match=f"{tmp_path}: read-only, nothing can be written there; .* --to"):
            place.require([FILE])


def test_a_file_in_the_way_is_called_so(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.add(REPO, {"model.safetensors": bytes(100)})
    (tmp_path / "notes").touch()
    for to in ("notes", "notes/deep"):
        assert f"{tmp_path}/notes: not a folder" in one_line(run("download", REPO, "--to", to), 2)
    assert not hub.bodies()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_disk(hub: Hub, run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        hub.add(REPO, {"model.safetensors": bytes(100)})
        assert f"{disk}: read-only" in one_line(run("download", REPO, "--to", disk), 2)
        assert f"{disk}: read-only" in one_line(run("download", REPO, env={"HF_HUB_CACHE": str(disk / "hub")}), 2)
        assert not hub.bodies()
        dry = run("download", REPO, "--to", disk / "x", "--dry-run")
        assert dry.returncode == 2
        assert "read-only" in dry.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_shared_cache_that_is_read_only_is_used(hub: Hub, run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        hub.add_folder(REPO, tiny_llama)
        cache = {"HF_HUB_CACHE": str(disk)}
        assert run("download", REPO, env=cache).returncode == 0
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        again = run("download", REPO, env=cache)
        assert again.returncode == 0, again.stderr
        assert "nothing, all is there" in again.stdout
        assert run("inspect", REPO, env=cache).returncode == 0
        assert run("verify", "--checksums", REPO, env=cache).returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_signature_does_not_end_in_a_message(hub: Hub, run: Run) -> None:
    assert "SIGNED" not in one_line(run("download", f"{hub.url}/a/b/m.gguf?X-Signature=SIGNED"), 2)
