"""Downloads whose bytes are damaged, and checksums that tell so at any time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Content, Fault, Hub

from tests.download.conftest import Run
from tests.download.small_repository import REPO, files, published, tensors_of


@pytest.mark.parametrize("kind", ["wrong", "short"])
def test_damage_is_fetched_again_once(kind: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.faults = [Fault("model-00001", kind, after=1000)]
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 0, done.stderr
    assert "again" in done.stderr
    assert tensors_of(tmp_path / "here") == published(content)


def test_damage_twice_is_reported_by_name_and_the_others_are_kept(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.faults = [Fault("model-00001", "wrong", times=99), Fault("config.json", "wrong", times=99)]
    done = run("download", REPO, "--to", "here", "--exclude", "original/*")
    assert done.returncode == 1
    assert "model-00001-of-00002.safetensors: sha256" in done.stderr
    assert "config.json: git id" in done.stderr
    assert len(hub.bodies("model-00001")) == 2
    here = tmp_path / "here"
    assert not (here / "model-00001-of-00002.safetensors").exists()
    assert tensors_of(here) == {k: v for k, v in published(content).items() if "00002-of" in k}
    assert not list(here.glob(".oss-tools-download/*"))


def test_a_body_that_never_comes_whole(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, files())
    hub.listed[REPO] = {
        n: Content(c.size + (n == "tokenizer.json"), c.read, c.sha256, c.git_oid) for n, c in hub.repos[REPO].items()
    }
    done = run("download", REPO)
    assert done.returncode == 1
    assert "tokenizer.json: the server has 50000 bytes, 50001 were announced" in done.stderr


@pytest.mark.slow
def test_checksums_are_verified_at_any_time(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.add(REPO, files())
    for to, folder in (("here", tmp_path / "here"), (None, None)):
        done = run("download", REPO, *(["--to", to] if to else []), "--json")
        path = folder or Path(json.loads(done.stdout)["path"])
        fine = run("verify", "--checksums", path)
        assert fine.returncode == 0, fine.stdout + fine.stderr
        assert "7 read, 7 as downloaded" in fine.stdout
        victim = path / "model-00002-of-00002.safetensors"
        data = bytearray(victim.read_bytes())
        data[777] ^= 1
        victim.resolve().write_bytes(data)
        (path / "LICENSE").unlink()
        bad = run("verify", "--checksums", path)
        assert bad.returncode == 1
        assert "its bytes have changed" in bad.stdout
        assert "missing" in bad.stdout
        assert run("verify", "--checksums", path / "tokenizer.json").returncode == 0
        assert run("verify", "--checksums", victim).returncode == 1


def test_checksums_of_a_cache_that_huggingface_hub_filled(hub: Hub, run: Run, environment: dict) -> None:
    hub.add(REPO, files())
    code = "import sys; from huggingface_hub import snapshot_download as s; print(s(sys.argv[1]))"
    theirs = subprocess.run([sys.executable, "-c", code, REPO], env=environment, capture_output=True, text=True, check=True)
    path = Path(theirs.stdout.strip())
    assert run("verify", "--checksums", path).returncode == 0
    (path / "config.json").resolve().write_bytes(b'{"model_type": "gpt_0ss"}')
    assert run("verify", "--checksums", path).returncode == 1


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a//b", 7])
def test_a_manifest_that_points_elsewhere_is_refused(path: object, run: Run, tmp_path: Path) -> None:
    entry = {"path": path, "bytes": 1, "sha256": "0" * 64, "verified_by": "sha256", "url": ""}
    (tmp_path / "oss-tools-download.json").write_text(json.dumps({"schema": 1, "files": [entry]}))
    done = run("verify", "--checksums", tmp_path)
    assert done.returncode == 2
    assert "no name of a file" in done.stderr


def test_verify_wants_two_checkpoints_or_checksums(run: Run, tmp_path: Path) -> None:
    assert run("verify", tmp_path).returncode == 2
    assert run("verify", tmp_path, tmp_path, "--checksums").returncode == 2
    assert "no checksums are known" in run("verify", "--checksums", tmp_path).stderr
