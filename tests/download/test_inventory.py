"""The models on the disk: listed, and removed from caches that huggingface_hub made from the hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, serving
from huggingface_hub import scan_cache_dir

from oss_tools.convert import pipeline
from oss_tools.convert.pipeline import Options
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.models import open_checkpoint
from tests.download.conftest import Run, environment_for

REPO, QUANTS = "someone/tiny-llama", "someone/tiny-llama-GGUF"
FETCH = "import sys; from huggingface_hub import snapshot_download as s; s(sys.argv[1])"


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of huggingface_hub's with a repository of safetensors and one of two GGUF models. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    for recipe in ("bf16", "q8_0"):
        with open_checkpoint(tiny_llama) as checkpoint:
            pipeline.run(
                make_plan(checkpoint, "gguf", load_recipe(recipe)), folder / f"model-{recipe.upper()}.gguf", Options(jobs=1)
            )
    with serving() as hub:
        hub.add_folder(REPO, tiny_llama)
        hub.add(QUANTS, {path.name: path.read_bytes() for path in folder.glob("*.gguf")})
        for repo in (REPO, QUANTS):
            environment = environment_for(hub, folder)
            subprocess.run([sys.executable, "-c", FETCH, repo], env=environment, capture_output=True, check=True)
    return folder / "hf" / "hub"


@pytest.fixture
def cache(made: Path, environment: dict[str, str]) -> Path:
    """A copy of `made` where the commands look for it."""
    return shutil.copytree(made, Path(environment["HF_HOME"], "hub"), symlinks=True)


def listed(run: Run) -> dict[str, dict]:
    done = run("models", "--json")
    assert done.returncode == 0, done.stderr
    return {model["name"]: model for model in json.loads(done.stdout)["models"]}


def test_every_model_has_its_name_size_and_format(cache: Path, run: Run) -> None:
    found = {name: model for name, model in listed(run).items() if model["cached"]}
    assert list(found) == [REPO, f"{QUANTS}:BF16", f"{QUANTS}:Q8_0"]
    assert [model["formats"][0] for model in found.values()] == ["bf16", "bf16", "q8_0"]
    sizes = {repo.repo_id: repo.size_on_disk for repo in scan_cache_dir(cache).repos}
    assert found[REPO]["bytes"] == sizes[REPO]
    assert found[f"{QUANTS}:BF16"]["bytes"] + found[f"{QUANTS}:Q8_0"]["bytes"] == sizes[QUANTS]
    for name in found:
        assert run("inspect", name).returncode == 0
    table = run("models")
    assert f"{QUANTS}:Q8_0" in table.stdout
    assert "minutes" in table.stdout


def test_models_of_the_current_folder_are_listed_too(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert run("convert", tiny_llama, "mine", "-q").returncode == 0
    assert run("convert", tiny_llama, "mine.gguf", "-q").returncode == 0
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    found = listed(run)
    assert set(found) == {"mine/", "mine.gguf", "broken.gguf"}
    assert not any(model["cached"] for model in found.values())
    assert found["mine.gguf"]["formats"] == ["bf16"]
    assert found["broken.gguf"]["problem"]


def test_a_download_that_is_not_complete_says_so(cache: Path, run: Run) -> None:
    snapshot = next((cache / "models--someone--tiny-llama" / "snapshots").iterdir())
    next(snapshot.glob("*.safetensors")).unlink()
    model = listed(run)[REPO]
    assert "not complete" in model["problem"]


def test_a_repository_is_removed_whole(cache: Path, run: Run) -> None:
    done = run("models", "rm", REPO, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["removed"][0]["bytes"] > 0
    assert {repo.repo_id for repo in scan_cache_dir(cache).repos} == {QUANTS}


def test_one_gguf_model_is_removed_and_the_other_stays(cache: Path, run: Run) -> None:
    before = scan_cache_dir(cache)
    done = run("models", "rm", f"{QUANTS}:Q8_0", "-y", "--json")
    assert done.returncode == 0, done.stderr
    freed = json.loads(done.stdout)["removed"][0]["bytes"]
    after = scan_cache_dir(cache)
    assert not after.warnings
    assert before.size_on_disk - after.size_on_disk == freed
    assert run("inspect", QUANTS).returncode == 0
    assert "Q8_0" not in str(list(listed(run)))


def test_what_another_revision_shares_stays(cache: Path, run: Run, tiny_llama: Path) -> None:
    repository = cache / "models--someone--tiny-llama"
    other = repository / "snapshots" / ("b" * 40)
    other.mkdir()
    for link in (repository / "snapshots" / COMMIT).iterdir():
        (other / link.name).symlink_to(os.readlink(link))
    alone = repository / "blobs" / ("c" * 40)
    alone.write_text("only of this revision")
    (other / "README.md").unlink(missing_ok=True)
    (other / "README.md").symlink_to(f"../../blobs/{alone.name}")
    done = run("models", "rm", f"{REPO}@{'b' * 40}", "-y", "--json")
    assert done.returncode == 0, done.stderr
    assert not alone.exists()
    assert not other.exists()
    assert run("verify", REPO, tiny_llama).returncode == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["rm"], "name what to remove"),
        (["remove", REPO], "the only word that may follow is rm"),
        (["rm", "someone/tiny-lama", "-y"], "did you mean someone/tiny-llama"),
        (["rm", "../../etc", "-y"], "is no repository"),
        (["rm", f"{QUANTS}:Q4_0", "-y"], "has no GGUF model"),
        (["rm", REPO], "--yes removes them"),
    ],
)
def test_what_is_not_there_removes_nothing(words: list[str], why: str, cache: Path, run: Run) -> None:
    before = scan_cache_dir(cache).size_on_disk
    done = run("models", *words, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert scan_cache_dir(cache).size_on_disk == before


def test_a_file_of_the_users_is_the_users_to_delete(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    assert run("models", "rm", "mine.gguf", "-y").returncode == 2
    assert (tmp_path / "mine.gguf").exists()


def test_a_link_in_the_place_of_a_repository_takes_nothing_outside_along(cache: Path, run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "snapshots").mkdir(parents=True)
    (outside / "precious").write_text("kept")
    (cache / "models--evil--link").symlink_to(outside)
    assert run("models", "rm", "evil/link", "-y").returncode != 0
    assert (outside / "precious").read_text() == "kept"
