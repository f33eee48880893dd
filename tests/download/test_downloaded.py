"""MODEL by the name of what was downloaded. The caches are made by huggingface_hub, or by us, from the hub on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub

from oss_tools.download.contents import opened, snapshot
from oss_tools.download.layout import name_of
from oss_tools.errors import BadSource
from tests.adapters.written import lora, random_pair, write_peft
from tests.download.conftest import Run

REPO = "someone/tiny-llama"
FETCH = "import sys; from huggingface_hub import snapshot_download as s; s(sys.argv[1], allow_patterns=sys.argv[2:] or None)"


@pytest.fixture
def fetch(hub: Hub, environment: dict[str, str], tiny_llama: Path):
    """Downloads the repository with huggingface_hub, all or what patterns mean; returns the repository's folder in the cache."""
    hub.add_folder(REPO, tiny_llama)

    def fetch(*patterns: str) -> Path:
        subprocess.run([sys.executable, "-c", FETCH, REPO, *patterns], env=environment, capture_output=True, check=True)
        return Path(environment["HF_HOME"], "hub", "models--someone--tiny-llama")

    return fetch


def said(done: subprocess.CompletedProcess) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


# ---- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [REPO, f"hf://{REPO}", f"{REPO}@main", f"{REPO}@{COMMIT}", f"{REPO}@{COMMIT[:8]}"])
def test_a_name_means_what_huggingface_hub_downloaded(name: str, fetch, hub: Hub, run: Run) -> None:
    folder = fetch()
    hub.requests.clear()
    done = run("inspect", name, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(folder / "snapshots" / COMMIT)
    assert not hub.requests


@pytest.mark.slow
def test_every_verb_takes_the_name(fetch, run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    fetch()
    offline = {"HF_HUB_OFFLINE": "1"}
    for arguments in (
        ["generate", REPO, "hi", "-n", 2, "-q"],
        ["convert", REPO, "x.gguf"],
        ["requantize", REPO, "q", "--format", "int8"],
        ["verify", REPO, tiny_llama],
        ["verify", "--checksums", REPO],
        ["eval", REPO, "--suite", "math", "--dry-run"],
        ["fit", REPO, "--bandwidth", "10GB"],
        ["download", REPO],
    ):
        done = run(*arguments, env=offline)
        assert done.returncode == 0, (arguments, done.stderr)


@pytest.mark.slow
def test_an_adapter_is_downloaded_and_merged_by_its_name(fetch, hub: Hub, run: Run, tmp_path: Path) -> None:
    fetch()
    pair = lora("model.layers.0.self_attn.q_proj", *random_pair(64, 64, size=0.5))
    for name, base in (("style", REPO), ("alien", "someone/other-llama")):
        hub.add_folder(f"someone/{name}", write_peft(tmp_path / name, pair, base_model_name_or_path=base))
        done = run("download", f"someone/{name}")
        assert done.returncode == 0, done.stderr
    done = run("merge", REPO, "someone/style", "merged", "-q", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"]["share"] > 0.9
    assert "made for" not in done.stderr
    assert "was made for someone/other-llama, the base is someone/tiny-llama" in said(
        run("merge", REPO, "someone/alien", "x")
    )
    assert run("merge", REPO, "someone/alien", "x", "--any-base", "-q").returncode == 0


def test_fit_calls_a_snapshot_by_its_repository(fetch, hub: Hub, run: Run) -> None:
    folder = fetch()
    hub.requests.clear()
    assert json.loads(run("fit", REPO, "--bandwidth", "10GB", "--json").stdout)["model"] == REPO
    assert not hub.requests  # what is there need not be asked for
    assert name_of(folder / "snapshots" / COMMIT) == REPO
    assert name_of(Path("models/x.gguf")) == "x.gguf"


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_caches_place_is_where_huggingface_hub_has_it(
    variable: str, hub: Hub, run: Run, environment: dict[str, str], tiny_llama: Path, tmp_path: Path
) -> None:
    hub.add_folder(REPO, tiny_llama)
    del environment["HF_HOME"]
    environment |= {"HOME": str(tmp_path), variable: str(tmp_path / "elsewhere")}
    subprocess.run([sys.executable, "-c", FETCH, REPO], env=environment, capture_output=True, check=True)
    done = run("inspect", REPO, "--json")
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["path"]).is_relative_to(tmp_path / "elsewhere")


def test_a_short_name_means_the_pinned_revision_or_what_there_is(hub: Hub, run: Run, tiny_llama: Path) -> None:
    hub.add_folder("HuggingFaceTB/SmolLM2-135M", tiny_llama)
    line = said(run("inspect", "smollm2-135m"))
    assert "`oss-tools download smollm2-135m` fetches it" in line
    assert run("download", "HuggingFaceTB/SmolLM2-135M").returncode == 0
    assert run("inspect", "smollm2-135m").returncode == 0
    assert run("inspect", "SmolLM2-135M").returncode == 0


def test_a_path_of_that_name_wins(fetch, run: Run, tiny_gpt_oss: Path, tmp_path: Path) -> None:
    fetch()
    (tmp_path / "someone").mkdir()
    (tmp_path / REPO).symlink_to(tiny_gpt_oss)
    assert json.loads(run("inspect", REPO, "--json").stdout)["model_type"] == "gpt_oss"


@pytest.mark.slow
def test_what_download_to_put_beside(hub: Hub, run: Run, tiny_llama: Path) -> None:
    hub.add_folder(REPO, tiny_llama)
    assert run("download", REPO, "--to", "mine").returncode == 0
    assert json.loads(run("inspect", REPO, "--json").stdout)["path"] == "mine"
    assert run("download", REPO, "--to", "again").returncode == 0
    assert "to again and to mine" in said(run("inspect", REPO))


def test_what_is_not_there_says_what_would_fetch_it(fetch, run: Run, tmp_path: Path) -> None:
    fetch()
    assert "`oss-tools download other/model` fetches it" in said(run("inspect", "other/model"))
    assert "did you mean someone/tiny-llama, which is there?" in said(run("inspect", "someone/tiny-lama"))
    line = said(run("inspect", f"{REPO}@v2"))
    assert f"revision v2 is not in {tmp_path}/hf/hub (there are {REPO}@{COMMIT[:12]})" in line
    assert f"`oss-tools download {REPO} --revision v2`" in line
    assert "`oss-tools download other/model:Q4_K_M`" in said(run("inspect", "other/model:Q4_K_M"))
    (tmp_path / "model-q4.gguf").touch()
    assert "did you mean model-q4.gguf?" in said(run("inspect", "model-q5.gguf"))
    assert "did you mean gpt-oss-20b" in said(run("inspect", "gpt-oss-2b"))
    assert "did you mean model-q4.gguf?" in said(run("fit", "model-q5.gguf"))
    assert "no such file or folder" in said(run("inspect", "./someone/tiny-llama"))
    (tmp_path / "link").symlink_to("gone")
    assert f"a link to {tmp_path}/gone, which is not there" in said(run("inspect", "link"))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("https://example.org/m.gguf", "`oss-tools download https://example.org/m.gguf` fetches it"),
        ("gpt-oss:20b", "a name of Ollama's, whose registry is not read; did you mean gpt-oss-20b"),
        ("ollama://llama3.2", "`ollama show llama3.2 --modelfile`"),
        ("hf.co/other/model:Q4_K_M", "`oss-tools download other/model:Q4_K_M` fetches it"),
        ("https://huggingface.co/other/model/tree/v1", "`oss-tools download other/model --revision v1` fetches it"),
        ("hf://other/model/m.gguf", "an address; `oss-tools download hf://other/model/m.gguf` fetches it"),
        ("s3://bucket/model", "not an address that can be downloaded from"),
    ],
)
def test_addresses_and_other_programs_names_are_answered(name: str, answer: str, hub: Hub, run: Run) -> None:
    assert answer in said(run("generate", name, "hi"))
    assert not hub.requests


# ---- by place -------------------------------------------------------------------------------------------------------


def test_folders_of_the_cache(fetch, run: Run, tmp_path: Path) -> None:
    folder = fetch()
    right = folder / "snapshots" / COMMIT
    for path in (folder, folder / "snapshots", right):
        assert opened(path) == right
    assert f"a hub's cache of 1 repositories; name one: {REPO}" in said(run("inspect", folder.parent))


def revisions(folder: Path, *commits: str, main: str = "") -> Path:
    """A repository's folder in a cache, by hand."""
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


def test_of_several_revisions_main_is_meant(tmp_path: Path) -> None:
    one, two = "1" * 40, "2" * 40
    folder = revisions(tmp_path / "models--a--b", one, two, main=two)
    assert snapshot(folder).name == two
    assert snapshot(folder, "1" * 7).name == one
    assert snapshot(folder, "3" * 40).name == two  # a pinned one that is not there
    with pytest.raises(BadSource, match=r"revision 111111 is not in .*there are a/b@111111111111, a/b@222222222222"):
        snapshot(folder, "1" * 6, fallback=False)
    (folder / "refs" / "main").unlink()
    with pytest.raises(BadSource, match="has several revisions, and none is main"):
        snapshot(folder)
    assert snapshot(revisions(tmp_path / "models--a--c", one)).name == one
    with pytest.raises(BadSource, match=r"a/d is not in"):
        snapshot(_empty(tmp_path / "models--a--d"))


def _empty(folder: Path) -> Path:
    (folder / "snapshots").mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_checksums_are_of_the_whole_download_complete_or_not(fetch, run: Run) -> None:
    folder = fetch()
    missing = folder / "snapshots" / COMMIT / "model.safetensors"
    for name in (REPO, folder, folder / "snapshots"):
        assert "as downloaded" in run("verify", "--checksums", name).stdout
    missing.resolve().unlink()
    for name in (REPO, folder):
        done = run("verify", "--checksums", name)
        assert done.returncode == 1
        assert "missing" in done.stdout


# ---- incomplete -----------------------------------------------------------------------------------------------------


def test_a_snapshot_of_the_configuration_alone_is_not_complete(fetch, run: Run) -> None:
    """As transformers' AutoConfig leaves it."""
    fetch("config.json")
    line = said(run("inspect", REPO))
    assert f"not complete, it lacks all its tensors; `oss-tools download {REPO} --revision {COMMIT}` goes on with it" in line
    assert run("download", REPO, "--revision", COMMIT).returncode == 0
    assert run("inspect", REPO).returncode == 0


def test_a_snapshot_in_another_container_is_the_readers_to_refuse(fetch, run: Run) -> None:
    folder = fetch("config.json")
    (folder / "snapshots" / COMMIT / "pytorch_model.bin").touch()
    assert "not complete" not in said(run("inspect", REPO))


def test_where_main_is_not_complete_the_only_complete_revision_is_taken_and_told(fetch, run: Run) -> None:
    """As a look at the newest configuration leaves the cache."""
    folder = fetch()
    newest = "f" * 40
    (folder / "snapshots" / newest).mkdir()
    (folder / "snapshots" / newest / "config.json").write_text("{}")
    (folder / "refs" / "main").write_text(newest)
    for name in (REPO, folder):
        done = run("inspect", name, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["path"] == str(folder / "snapshots" / COMMIT)
        assert f"revision {newest[:12]} is not complete; {COMMIT[:12]} is, and is taken" in done.stderr
    assert "not complete" in said(run("inspect", f"{REPO}@main"))  # where it is named, no other will do


@pytest.mark.slow
def test_shards_that_are_missing_are_named(
    hub: Hub, run: Run, environment: dict[str, str], tmp_path: Path, tiny_llama
) -> None:
    assert run("convert", tiny_llama, "parts", "--shard-size", "150kB").returncode == 0
    hub.add_folder(REPO, tmp_path / "parts")
    command = [sys.executable, "-c", FETCH, REPO, "*.json", "*-00001-of-*"]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    for arguments in (["generate", REPO, "hi"], ["convert", REPO, "out"], ["eval", REPO, "--suite", "math"]):
        assert "not complete, it lacks model-00002-of-" in said(run(*arguments))
    assert not (tmp_path / "out").exists()
    assert run("download", REPO, "--to", "mine", "--include", "*.json", "--include", "*-00001-of-*").returncode == 0
    assert f"`oss-tools download {REPO} --to mine` goes on with it" in said(run("inspect", "mine"))


def test_a_link_to_a_blob_that_is_gone(fetch, run: Run) -> None:
    folder = fetch()
    (folder / "snapshots" / COMMIT / "model.safetensors").resolve().unlink()
    assert "it lacks model.safetensors" in said(run("inspect", REPO))
