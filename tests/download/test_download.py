"""Downloads from the hub on loopback, through the command line."""

import hashlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import COMMIT, Content, Fault, Hub

from tests.download.conftest import Run

REPO = "openai/gpt-oss-20b"


def files(seed: int = 1) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {
        "config.json": b'{"model_type": "gpt_oss"}',
        "model-00001-of-00002.safetensors": rng.randbytes(2_000_000),
        "model-00002-of-00002.safetensors": rng.randbytes(1_234_567),
        "model.safetensors.index.json": b"{}",
        "tokenizer.json": rng.randbytes(50_000),
        "LICENSE": b"Apache",
        "empty.json": b"",
        "pytorch_model.bin": b"evil",
        "training.py": b"evil",
        "metal/model.bin": b"evil",
        "original/model.safetensors": rng.randbytes(10_000),
        "original/config.json": b'{"num_experts": 4}',
    }


def tensors_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


def published(content: dict[str, bytes]) -> dict[str, str]:
    return {
        n: hashlib.sha256(d).hexdigest() for n, d in sorted(content.items()) if n.endswith("safetensors") and "/" not in n
    }


# ---- what is fetched ------------------------------------------------------------------------------------------------


def test_a_repository_goes_to_the_hubs_cache_where_huggingface_hub_finds_it(hub: Hub, run: Run, environment: dict) -> None:
    content = files()
    hub.add(REPO, content)
    done = run("download", REPO, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    snapshot = Path(found["path"])
    assert {f["path"] for f in found["files"]} == {n for n in content if "/" not in n and not n.endswith((".bin", ".py"))}
    assert {p.name: p.read_bytes() for p in snapshot.iterdir() if p.is_symlink()} == {
        f["path"]: content[f["path"]] for f in found["files"]
    }
    code = "import sys; from huggingface_hub import snapshot_download as s; print(s(sys.argv[1], local_files_only=True))"
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    theirs = subprocess.run([sys.executable, "-c", code, REPO], env=offline, capture_output=True, text=True, check=True)
    assert Path(theirs.stdout.strip()) == snapshot


def test_huggingface_hub_takes_over_our_files_and_we_take_over_its(hub: Hub, run: Run, environment: dict) -> None:
    hub.add(REPO, files())
    code = "import sys; from huggingface_hub import hf_hub_download as h; h(sys.argv[1], 'model-00001-of-00002.safetensors')"
    subprocess.run([sys.executable, "-c", code, REPO], env=environment, capture_output=True, check=True)
    before = len(hub.bodies("model-00001"))
    assert run("download", REPO).returncode == 0
    assert len(hub.bodies("model-00001")) == before
    code = "import sys; from huggingface_hub import snapshot_download as s; s(sys.argv[1], allow_patterns='*.safetensors')"
    hub.requests.clear()
    theirs = subprocess.run([sys.executable, "-c", code, REPO], env=environment, capture_output=True, text=True)
    assert theirs.returncode == 0, theirs.stderr
    assert [r.path for r in hub.bodies()] == [r.path for r in hub.bodies("original/")]  # what we left out on purpose


def test_a_second_run_fetches_nothing(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.add(REPO, files())
    assert run("download", REPO, "--to", "here").returncode == 0
    assert sorted(p.name for p in (tmp_path / "here").iterdir() if p.name.startswith(".")) == []
    hub.requests.clear()
    again = json.loads(run("download", REPO, "--to", "here", "--json").stdout)
    assert again["fetched_bytes"] == 0
    assert not hub.bodies()


def test_a_changed_file_is_fetched_anew(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    assert run("download", REPO, "--to", "here").returncode == 0
    (tmp_path / "here" / "config.json").write_bytes(b'{"model_type": "gpt_OSS"}')
    assert json.loads(run("download", REPO, "--to", "here", "--json").stdout)["fetched_bytes"] == 25
    assert (tmp_path / "here" / "config.json").read_bytes() == content["config.json"]


def test_openais_layout_comes_with_the_tokenizer(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.add(REPO, files())
    found = json.loads(run("download", REPO, "--container", "original", "--to", "here", "--json").stdout)
    assert found["path"] == "here/original"
    original = tmp_path / "here" / "original"
    assert {p.name for p in original.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json", "LICENSE"}
    assert (original / "config.json").read_bytes() == b'{"num_experts": 4}'


def test_include_and_exclude(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    done = run("download", REPO, "--include", "*.safetensors", "--exclude", "*-00002-of*", "--json")
    found = {f["path"] for f in json.loads(done.stdout)["files"]}
    assert found == {"model-00001-of-00002.safetensors", "original/model.safetensors"}


def test_pickles_are_never_fetched(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    done = run("download", REPO, "--include", "*.bin")
    assert done.returncode == 2
    assert "can run code" in done.stderr
    assert not hub.bodies("bin")


def test_of_several_gguf_models_one_must_be_named(hub: Hub, run: Run) -> None:
    hub.add(
        "a/b", {"m-q4.gguf": bytes(5000), "m-q8-00001-of-00002.gguf": bytes(6000), "m-q8-00002-of-00002.gguf": bytes(7000)}
    )
    done = run("download", "a/b")
    assert done.returncode == 2
    assert "2 GGUF models" in done.stderr
    assert "m-q8*.gguf" in done.stderr
    done = run("download", "a/b", "--include", "m-q8*", "--to", "q8", "--json")
    assert json.loads(done.stdout)["path"] == "q8/m-q8-00001-of-00002.gguf"


def test_a_short_name_takes_the_pinned_revision(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    done = run("download", "gpt-oss-20b")
    assert done.returncode == 2  # the loopback hub has no such commit
    assert "no such revision" in done.stderr
    assert any("/revision/6cee5e81ee83917806bbde320786a8fb61efebee" in r.path for r in hub.requests)
    assert json.loads(run("download", "gpt-oss-20b", "--revision", "main", "--json").stdout)["licence"] == "Apache-2.0"


def test_a_long_listing_comes_in_pages(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    hub.page = 2
    assert len(json.loads(run("download", REPO, "--json").stdout)["files"]) == 7


def test_dry_run_fetches_no_content(hub: Hub, run: Run, tiny_gpt_oss: Path, tmp_path: Path) -> None:
    hub.add_folder(REPO, tiny_gpt_oss)
    done = run("download", REPO, "--dry-run", "--to", "here")
    assert done.returncode == 0, done.stderr
    assert "to fetch" in done.stdout
    assert "of disk free" in done.stdout
    assert "to run it" in done.stdout
    assert sum(r.sent for r in hub.bodies(".safetensors")) < 20_000
    assert not (tmp_path / "here").exists()


def test_offline_uses_the_cache(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    done = run("download", REPO, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 3
    assert "HF_HUB_OFFLINE" in done.stderr
    path = json.loads(run("download", REPO, "--json").stdout)["path"]
    hub.requests.clear()
    assert json.loads(run("download", REPO, "--json", env={"HF_HUB_OFFLINE": "1"}).stdout)["path"] == path
    assert "HF_HUB_OFFLINE" in run("fit", "other/repo", "--bandwidth", "1GB", env={"HF_HUB_OFFLINE": "1"}).stderr
    assert not hub.requests


# ---- addresses ------------------------------------------------------------------------------------------------------


def test_an_address_of_a_gguf_file(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.add(REPO, {"m.gguf": random.Random(2).randbytes(300_000)})
    done = run("download", f"{hub.url}/{REPO}/resolve/main/m.gguf", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["path"] == "m.gguf"
    assert found["files"][0]["verified_by"] == "sha256"  # the hub's header says it
    assert Content.of((tmp_path / "m.gguf").read_bytes()).sha256 == hub.repos[REPO]["m.gguf"].sha256


def test_a_folder_with_an_index(hub: Hub, run: Run, tiny_gpt_oss: Path, tmp_path: Path) -> None:
    hub.add_folder("x/y", tiny_gpt_oss)
    for address, name in ((f"{hub.cdn}/x/y//", "web"), (f"file://{tiny_gpt_oss}/", "file")):
        done = run("download", address, "--to", name)
        assert done.returncode == 0, done.stderr
        assert tensors_of(tmp_path / name) == tensors_of(tiny_gpt_oss)
        assert run("inspect", name).returncode == 0


def test_a_split_gguf_comes_whole(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.add("x/y", {"m-00001-of-00002.gguf": bytes(5000), "m-00002-of-00002.gguf": bytes(6000)})
    done = run("download", f"{hub.cdn}/x/y//m-00002-of-00002.gguf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m-00001-of-00002.gguf").stat().st_size == 5000


@pytest.mark.parametrize(
    "name", ["nonsense", "ftp://example.org/m.gguf", "https://user:pass@example.org/m.gguf", "a/../b", "https:///m.gguf"]
)
def test_what_is_no_source_is_refused(name: str, hub: Hub, run: Run) -> None:
    assert run("download", name).returncode == 2
    assert not hub.requests


def test_an_index_that_points_outside_its_folder_is_refused(hub: Hub, run: Run) -> None:
    index = json.dumps({"weight_map": {"a": "../../evil.safetensors"}}).encode()
    hub.add("x/y", {"model.safetensors.index.json": index, "config.json": b"{}"})
    done = run("download", f"{hub.cdn}/x/y//")
    assert done.returncode == 2
    assert "outside its folder" in done.stderr


# ---- interruptions --------------------------------------------------------------------------------------------------

KILLED = """
import sys
from oss_tools.download import transfer
transfer.SEGMENT = 100_000
sys.argv = ["oss-tools", "download", "openai/gpt-oss-20b", "--to", "here", "--quiet", "--connections", "4"]
from oss_tools.cli.main import main
main()
"""


def test_resumes_after_sigkill_at_twenty_random_points(hub: Hub, environment: dict, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.allow(0)
    rng = random.Random(20)

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", KILLED], env=environment, cwd=tmp_path, stderr=subprocess.PIPE)

    def sent() -> int:
        return sum(r.sent for r in hub.bodies())

    kills = 0
    while kills < 20:
        before = sent()
        until = before + rng.randrange(1, 80_000)
        hub.allow(hub.served + until - before)  # there it stops, however fast it is
        child = start()
        while sent() < until and child.poll() is None:
            time.sleep(0.002)
        assert child.poll() is None, child.stderr and child.stderr.read()
        time.sleep(rng.random() * 0.02)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        assert sent() > before
        kills += 1
    hub.allow(math.inf)
    last = start()
    assert last.wait() == 0, last.stderr and last.stderr.read()
    assert tensors_of(tmp_path / "here") == published(content)
    assert sorted(p.name for p in (tmp_path / "here").iterdir() if p.name.startswith(".")) == []
    total = sum(f.size for n, f in hub.repos[REPO].items() if "/" not in n)
    assert sent() < 1.8 * total  # each kill costs what was on its way, no more


def test_a_connection_that_drops_goes_on_where_it_was(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.faults = [Fault("model-00001", "cut", times=3, after=400_000)]
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 0, done.stderr
    assert "trying again" in done.stderr
    assert tensors_of(tmp_path / "here") == published(content)
    assert sum(r.sent for r in hub.bodies("model-00001")) < 2_300_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_without_ranges_serves_as_well(ranges: bool, hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.ranges = ranges
    hub.faults = [Fault("model-00002", "cut", after=300_000)]
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 0, done.stderr
    assert tensors_of(tmp_path / "here") == published(content)


def test_a_slow_server_that_pauses_is_waited_for_and_resumed(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = {**files(), "model-00001-of-00002.safetensors": b"x" * 60_000}
    hub.add(REPO, content)
    hub.rate = 10_000  # a piece of 16 kB every 1.6 s, and the client waits one second
    done = run("download", REPO, "--to", "here", "--include", "model-00001*", env={"HF_HUB_DOWNLOAD_TIMEOUT": "1"})
    assert done.returncode == 0, done.stderr
    assert "trying again" in done.stderr
    assert (tmp_path / "here" / "model-00001-of-00002.safetensors").read_bytes() == b"x" * 60_000


def test_rate_limits_and_overload_are_waited_out(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.faults = [
        Fault("/revision/", "status", status=503),
        Fault("/tree/", "status", status=429, headers={"Retry-After": "1"}),
        Fault("model-00001", "status", status=429, headers={"Retry-After": "1"}, server="hub"),
        Fault("model-00002", "status", status=503, server="cdn"),
        Fault("tokenizer", "status", status=403, server="cdn"),  # a signature that has expired
    ]
    started = time.monotonic()
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started > 2
    assert not [f for f in hub.faults if f.times]
    assert tensors_of(tmp_path / "here") == published(content)


def test_a_server_that_asks_for_an_hour_is_left(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    hub.faults = [Fault("model-00001", "status", times=99, status=429, headers={"Retry-After": "3600"})]
    done = run("download", REPO)
    assert done.returncode == 3
    assert "asks to wait 3600 s" in done.stderr
    assert done.stderr.strip().count("oss-tools:") == 1


def test_two_at_once_do_not_mix(hub: Hub, environment: dict, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.allow(500_000)  # a part of the files: there the first one waits
    patient = environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "300"}
    first = subprocess.Popen([sys.executable, "-c", KILLED], env=patient, cwd=tmp_path)
    while hub.served < 500_000:
        assert first.poll() is None
        time.sleep(0.01)
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 2
    assert "another process" in done.stderr
    hub.allow(math.inf)
    assert first.wait() == 0
    assert tensors_of(tmp_path / "here") == published(content)


# ---- damage ---------------------------------------------------------------------------------------------------------


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


# ---- who may ask, and who is asked ----------------------------------------------------------------------------------


def test_the_token_never_leaves_the_hub(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    hub.private.add(REPO)
    done = run("download", REPO, env={"HF_TOKEN": hub.token})
    assert done.returncode == 0, done.stderr
    sent = {
        name: {"Authorization" in {k.title() for k in r.headers} for r in hub.requests if r.server == name}
        for name in ("hub", "cdn")
    }
    assert sent["cdn"] == {False}
    assert True in sent["hub"]


def test_redirects_to_strange_places_are_refused(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    hub.redirect_to = "file:///etc/passwd"
    done = run("download", REPO)
    assert done.returncode == 2
    assert "not an address" in done.stderr
    hub.redirect_to = f"{hub.url}/{REPO}/resolve/main/model-00001-of-00002.safetensors"  # in a circle
    done = run("download", REPO)
    assert done.returncode == 2
    assert "redirects" in done.stderr


@pytest.mark.parametrize("token", ["", "hf_other"])
def test_a_gated_repository_says_what_to_do(token: str, hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    hub.gated.add(REPO)
    done = run("download", REPO, env={"HF_TOKEN": token})
    assert done.returncode == 2
    assert "gated" in done.stderr
    assert "accept its terms" in done.stderr
    assert ("HF_TOKEN" in done.stderr) == (not token)
    assert len(done.stderr.strip().splitlines()) == 1


def test_missing_and_private_repositories_say_what_to_do(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    done = run("download", "openai/gpt-oss-21b")
    assert done.returncode == 2
    assert "check the name, or set HF_TOKEN" in done.stderr
    assert "not found" in run("download", "openai/gpt-oss-21b", env={"HF_TOKEN": hub.token}).stderr
    assert "no such revision" in run("download", REPO, "--revision", "v9").stderr


STRANGE = [
    "../evil.json",
    "/etc/evil.json",
    "a/../../evil.json",
    "a//evil.json",
    "~/" + "x" * 300 + ".json",
    "logs/12:30:05",
    "a:b",
    "notes\\old.txt",
    "ends in a space ",
    "é" * 200 + ".txt",
    "half a pair \ud800",
    "two\nlines",
    ".",
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_name_of_a_file_that_nobody_wants_stops_nothing(name: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, {**content, name: b"evil"})
    done = run("download", REPO, "--to", "deep/here")
    assert done.returncode == 0, done.stderr
    kept = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file() and "hf" not in p.parts}
    wanted = {f"deep/here/{n}" for n in content if "/" not in n and not n.endswith((".bin", ".py"))}
    assert kept == wanted | {"deep/here/oss-tools-download.json"}


@pytest.mark.parametrize("name", [n for n in STRANGE if n not in (".", "ends in a space ")])
def test_of_a_file_that_is_wanted_it_is_refused_by_name(name: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.add(REPO, {**files(), name: b"evil"})
    done = run("download", REPO, "--to", "deep/here", "--include", "*")
    assert done.returncode == 2
    assert repr(name[:120])[1:-1] in done.stderr
    assert "leaves its folder" in done.stderr or "no file can have" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not hub.bodies()
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("name", ["results:1.json", "C:\\notes.json"])
def test_a_small_file_at_the_top_with_a_strange_name_is_left_out_with_a_line(name: str, hub: Hub, run: Run) -> None:
    hub.add(REPO, {**files(), name: b"{}"})
    done = run("download", REPO, "--json")
    assert done.returncode == 0, done.stderr
    assert repr(name) in done.stderr
    assert "left out" in done.stderr
    assert name not in {f["path"] for f in json.loads(done.stdout)["files"]}


@pytest.mark.parametrize("name", ["model:1.safetensors", "a\\b.safetensors"])
def test_tensors_with_a_strange_name_are_refused(name: str, hub: Hub, run: Run) -> None:
    hub.add("a/b", {"config.json": b"{}", name: bytes(100)})
    done = run("download", "a/b")
    assert done.returncode == 2
    assert repr(name)[1:-1] in done.stderr


def test_a_file_that_is_a_folder_as_well_is_refused(hub: Hub, run: Run) -> None:
    hub.add(REPO, {**files(), "config.json/x.json": b"evil"})
    assert "lists 'config.json' twice" in run("download", REPO, "--include", "*.json").stderr


def test_a_strangers_manifest_is_not_taken_for_ours(hub: Hub, run: Run, tmp_path: Path) -> None:
    ghost = {"path": "ghost.json", "bytes": 5, "sha256": "0" * 64, "verified_by": "sha256", "url": ""}
    hub.add(REPO, {**files(), "oss-tools-download.json": json.dumps({"files": [ghost]}).encode()})
    for more in ([], ["--include", "*.json"]):
        assert run("download", REPO, "--to", "here", *more).returncode == 0
        assert "ghost" not in (tmp_path / "here" / "oss-tools-download.json").read_text()


# ---- disks ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_is_told_and_resumed(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

    done = run("download", REPO, "--to", "here", preexec_fn=limit)
    assert done.returncode == 3
    assert "free some space" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    before = len(hub.bodies())
    assert run("download", REPO, "--to", "here").returncode == 0
    assert tensors_of(tmp_path / "here") == published(content)
    fetched = sum(request.sent for request in hub.bodies()[before:])
    assert fetched < sum(map(len, content.values())) - 900_000  # whichever file came to the limit kept what fitted


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_small_disk(hub: Hub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine allows no mounts")
    try:
        hub.add(REPO, files())
        done = run("download", REPO, "--to", disk)
        assert done.returncode == 3
        assert "still to be fetched" in done.stderr
        assert not hub.bodies()
        unchecked = "from oss_tools.download import places; places.Place.require = lambda *_: None; " + KILLED.replace(
            '"here"', repr(str(disk))
        ).replace("\n", ";").strip(";")
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        filled = subprocess.run(
            [sys.executable, "-c", unchecked], env=environment, capture_output=True, text=True, timeout=60
        )
        assert filled.returncode == 3, filled.stderr
        assert "free some space" in filled.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_commit_is_what_the_hub_says(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    assert json.loads(run("download", REPO, "--json").stdout)["commit"] == COMMIT
