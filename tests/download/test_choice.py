"""Which files of a repository are a checkpoint: by the index, by quantization, by name. Served by the hub on loopback."""

import hashlib
import json
from pathlib import Path

import pytest
from hub_server import Hub

from oss_tools.download.names import understand
from oss_tools.download.quantizations import models_among, named, near_misses
from oss_tools.download.select import choose
from oss_tools.download.transfer import RemoteFile
from oss_tools.errors import BadSource
from oss_tools.models import open_checkpoint
from tests.download.conftest import Run


def offer(*paths: str, size: int = 5000) -> list[RemoteFile]:
    return [RemoteFile(path, size, f"http://hub/{path}", hashlib.sha256(path.encode()).hexdigest()) for path in paths]


def chosen(*arguments: object, **options: object) -> list[str]:
    return [file.path for file in choose(*arguments, **options)[1]]  # type: ignore[arg-type]


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"t{i}": shard for i, shard in enumerate(shards)}}).encode()


# ---- safetensors: what transformers opens ---------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    "others",
    [
        ("model.fp16.safetensors",),
        ("model-00001-of-00009.safetensors", "model-00002-of-00009.safetensors"),
        ("consolidated.safetensors", "model.fp16.safetensors.index.json"),
        ("adapter_model.safetensors",),
    ],
)
def test_what_the_index_names_and_nothing_beside_it(others: tuple[str, ...]) -> None:
    found = chosen(offer("config.json", *others, INDEX, *SHARDS), read=lambda file: index(*SHARDS))
    assert sorted(found) == sorted(["config.json", INDEX, *SHARDS])


def test_further_chat_templates_come_along() -> None:
    templates = ("chat_template.jinja", "additional_chat_templates/tool_use.jinja")
    others = ("additional_chat_templates/notes/x.jinja", "examples/y.jinja")
    found = chosen(offer("config.json", "model.safetensors", *templates, *others))
    assert sorted(found) == sorted(["config.json", "model.safetensors", *templates])


def test_one_file_goes_before_a_set_with_an_index() -> None:
    files = offer("config.json", "model.safetensors", INDEX, *SHARDS, "model.fp16.safetensors")
    assert sorted(chosen(files, read=lambda file: index(*SHARDS))) == ["config.json", "model.safetensors"]


def test_the_index_is_asked_only_where_it_decides_something() -> None:
    def never(file: RemoteFile) -> bytes:
        raise AssertionError

    assert set(chosen(offer("config.json", INDEX, *SHARDS), read=never)) == {"config.json", INDEX, *SHARDS}


def test_an_index_of_what_is_not_there_is_refused() -> None:
    files = offer("config.json", INDEX, *SHARDS, "model.fp16.safetensors")
    with pytest.raises(BadSource, match=r"names 1 files that the repository lacks.*model-00003-of-00003"):
        chosen(files, read=lambda file: index(*SHARDS, "model-00003-of-00003.safetensors"))


def test_original_has_an_index_of_its_own() -> None:
    paths = [f"original/{name}" for name in ("config.json", "model--00001-of-00001.safetensors", "old.safetensors", INDEX)]
    found = chosen(offer(*paths), "original", read=lambda file: index("model--00001-of-00001.safetensors"))
    assert sorted(found) == sorted(path for path in paths if "old" not in path)


def test_shards_beside_another_build_are_not_fetched(hub: Hub, run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    """What was fetched opens with transformers' own rule, that a file that the index does not name is not the model's."""
    whole = (tiny_llama / "model.safetensors").read_bytes()
    done = run("convert", tiny_llama, "parts", "--shard-size", "150kB")
    assert done.returncode == 0, done.stderr
    parts = {p.name: p.read_bytes() for p in (tmp_path / "parts").iterdir() if not p.name.startswith("oss-tools")}
    shards = {name for name in parts if name.endswith(".safetensors")}
    assert len(shards) > 1
    hub.add("x/y", {**parts, "model-00001-of-00009.safetensors": whole[:9000], "model.fp16.safetensors": whole})
    assert run("download", "x/y", "--to", "here").returncode == 0
    assert {p.name for p in (tmp_path / "here").glob("*.safetensors")} == shards
    assert run("verify", tiny_llama, "here").returncode == 0
    assert not hub.bodies("fp16")
    assert not hub.bodies("00009")


# ---- GGUF: quantizations -------------------------------------------------------------------------------------------

UNSLOTH = (
    "config.json",
    "model-Q4_K_M.gguf",
    "model-UD-Q4_K_XL.gguf",
    "model-Q8_0.gguf",
    "BF16/model-BF16-00001-of-00002.gguf",
    "BF16/model-BF16-00002-of-00002.gguf",
    "mmproj-F16.gguf",
    "imatrix_unsloth.gguf",
)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("Q4_K_M", ["model-Q4_K_M.gguf"]),
        ("q4_k_m", ["model-Q4_K_M.gguf"]),
        ("ud-q4_k_xl", ["model-UD-Q4_K_XL.gguf"]),
        ("bf16", ["BF16/model-BF16-00001-of-00002.gguf", "BF16/model-BF16-00002-of-00002.gguf"]),
        ("bf16/*", ["BF16/model-BF16-00001-of-00002.gguf", "BF16/model-BF16-00002-of-00002.gguf"]),
        ("BF16/", ["BF16/model-BF16-00001-of-00002.gguf", "BF16/model-BF16-00002-of-00002.gguf"]),
        ("*q8_0.gguf", ["model-Q8_0.gguf"]),
    ],
)
def test_a_quantization_is_chosen_by_name_in_whatever_case(name: str, files: list[str]) -> None:
    kind, found = choose(offer(*UNSLOTH), include=[name])
    assert (kind, [f.path for f in found]) == ("gguf", files)


def test_all_quantizations_are_listed_with_their_sizes() -> None:
    with pytest.raises(BadSource) as refused:
        choose(offer(*UNSLOTH, size=150_000_000))
    said = str(refused.value)
    assert said.startswith("the repository has 4 GGUF models; name one with --include")
    for model in ("model-Q4_K_M.gguf (150 MB)", "BF16/model-BF16*.gguf (300 MB)", "model-Q8_0.gguf (150 MB)"):
        assert model in said
    assert "mmproj" not in said
    assert "imatrix" not in said


@pytest.mark.parametrize(("name", "near"), [("Q4_KM", "Q4_K_M"), ("q8", "Q8_0"), ("b16", "BF16")])
def test_near_misses(name: str, near: str) -> None:
    with pytest.raises(BadSource, match=f"no file is left to fetch.*did you mean .*{near}"):
        choose(offer(*UNSLOTH), include=[name])


def test_parts_of_a_split_model_that_are_not_there() -> None:
    (model,) = models_among({"m-00002-of-00003.gguf": 1, "m-00001-of-00003.gguf": 1})
    assert model.missing_parts == ["m-00003-of-00003.gguf"]
    assert [m.paths for m in models_among({"a.gguf": 1, "A.GGUF": 2})] == [("A.GGUF",), ("a.gguf",)]


def test_a_name_that_two_models_share_means_both() -> None:
    models = models_among({"a-Q4_0.gguf": 1, "b-Q4_0.gguf": 1, "b-IQ4_NL.gguf": 1})
    assert len(named(models, "q4_0")) == 2
    assert named(models, "a-q4_0.gguf") == models[:1]
    assert named(models, "q4") == []
    assert near_misses(models, "iq4")[0] == "IQ4_NL"


@pytest.fixture
def quantized(run: Run, tiny_llama: Path, tmp_path: Path) -> dict[str, bytes]:
    """A repository with a folder for each quantization, one of them split."""
    for name, more in (("q4_0", ["--shard-size", "40kB"]), ("q8_0", [])):
        done = run("convert", tiny_llama, f"made/m-{name}.gguf", "--format", name, *more)
        assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "made").glob("*.gguf"))
    return {f"{'Q4_0' if 'q4_0' in p.name else 'Q8_0'}/{p.name}": p.read_bytes() for p in made} | {"README.md": b"two"}


@pytest.mark.slow
def test_quantizations_in_folders(hub: Hub, run: Run, quantized: dict[str, bytes], tmp_path: Path) -> None:
    hub.add("u/r", quantized)
    refused = run("download", "u/r", "--dry-run")
    assert refused.returncode == 2
    assert "2 GGUF models" in refused.stderr
    assert "Q4_0/m-q4_0*.gguf (" in refused.stderr
    assert " kB)" in refused.stderr
    assert "GB" not in refused.stderr
    for name, wanted in (("u/r:q4_0", "Q4_0/"), ("u/r:Q8_0", "Q8_0/")):
        done = run("download", name, "--to", "here", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert {f["path"] for f in found["files"]} == {p for p in quantized if p.startswith(wanted)}
        with open_checkpoint(tmp_path / found["path"]) as checkpoint:
            assert checkpoint.parameters > 0
        checked = run("verify", "--checksums", found["path"])
        assert checked.returncode == 0, checked.stderr
        assert f"{len(found['files'])} read" in checked.stdout  # all parts
    assert f"{len(quantized) - 1} read" in run("verify", "--checksums", "here").stdout
    both = run("inspect", "here")
    assert both.returncode == 2
    assert "2 GGUF models; name one of them: Q4_0/m-q4_0*.gguf" in both.stderr
    fit = run("fit", "u/r:Q8_0", "--bandwidth", "10GB")
    assert fit.returncode == 0, fit.stderr
    assert "choice  as stored" in fit.stdout
    assert "139,584 parameters" in fit.stdout


def test_a_folder_with_one_quantization_in_a_folder_is_opened(run: Run, quantized: dict[str, bytes], tmp_path: Path) -> None:
    for path, data in quantized.items():
        if path.startswith("Q4_0/"):
            (tmp_path / "alone" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "alone" / path).write_bytes(data)
    done = run("inspect", "alone", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["container"] == "gguf"
    second = next((tmp_path / "alone").glob("*/*-00002-of-*"))
    second.unlink()
    done = run("inspect", "alone")
    assert done.returncode == 2
    assert second.name in done.stderr


# ---- names ----------------------------------------------------------------------------------------------------------

HUB = "https://hub.example"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a/b", ("a/b", "main", "", "")),
        ("a/b@v1.0", ("a/b", "v1.0", "", "")),
        ("a/b@refs/pr/3:Q4_K_M", ("a/b", "refs/pr/3", "Q4_K_M", "")),
        ("hf://a/b", ("a/b", "main", "", "")),
        ("hf.co/a/b:Q8_0", ("a/b", "main", "Q8_0", "")),
        ("https://huggingface.co/a/b/", ("a/b", "main", "", "")),
        (f"{HUB}/a/b/tree/v2", ("a/b", "v2", "", "")),
        ("GPT-OSS-20B", ("openai/gpt-oss-20b", "6cee5e81ee83917806bbde320786a8fb61efebee", "", "")),
        (f"{HUB}/a/b/blob/main/x.gguf", ("", "", "", f"{HUB}/a/b/resolve/main/x.gguf")),
        ("hf://a/b/Q4/x.gguf", ("", "", "", f"{HUB}/a/b/resolve/main/Q4/x.gguf")),
        (f"{HUB}/a/b/resolve/main/x.gguf", ("", "", "", f"{HUB}/a/b/resolve/main/x.gguf")),
        ("https://elsewhere.example/a/b", ("", "", "", "https://elsewhere.example/a/b")),
    ],
)
def test_names_are_understood_as_other_programs_write_them(name: str, wanted: tuple[str, str, str, str]) -> None:
    found = understand(name, "", HUB)
    assert (found.repo, found.revision, found.quantization, found.address) == wanted


@pytest.mark.parametrize("name", ["a", "a/b@", "a/b:", "a/b@../x", "a/b/c", "../b", "gpt-oss:20b", "hf://a"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadSource):
        understand(name, "", HUB)
