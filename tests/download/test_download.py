"""Downloads from the hub on loopback, through the command line."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, Content, Hub

from tests.download.conftest import Run
from tests.download.small_repository import REPO, files, tensors_of

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


def test_commit_is_what_the_hub_says(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    assert json.loads(run("download", REPO, "--json").stdout)["commit"] == COMMIT


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
