"""Sizes, verdicts and choices, from shapes and from checkpoints."""

import json
import subprocess
from pathlib import Path

import pytest

from oss_tools.checkpoints.safetensors import SafetensorsFile
from oss_tools.convert import synth
from oss_tools.convert.recipe import load_recipe, recipe_names, recipe_of_format
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.backend import Options
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.engine.numba_weights import NumbaWeights
from oss_tools.fit.estimate import Estimate, choose, of_checkpoint, of_shape
from oss_tools.fit.machine import Machine
from oss_tools.fit.memory import Tokenizer, Use, bytes_per_token, memory, panel_bytes
from oss_tools.models import open_checkpoint
from tests.commands import oss_tools

USE = Use(4096, 1, 2, 16 << 30)
PUBLISHED = {"gpt-oss-20b": 13_761_264_768, "gpt-oss-120b": 65_248_815_744}


def machine(ram: float, vram: float | None = None, disk: float | None = None) -> Machine:
    giga = 10**9
    return Machine(int(ram * giga), vram and int(vram * giga), disk and int(disk * giga), 50e9, 2)


@pytest.fixture(scope="module")
def large() -> Estimate:
    return of_shape(load_shape("gpt-oss-120b"), USE)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gpt-oss-20b" else pytest.mark.slow) for name in PUBLISHED]
)
def test_a_shape_has_the_published_size_to_the_byte(name: str) -> None:
    (row,) = [r for r in of_shape(load_shape(name), USE).rows if r.published]
    assert row.file_bytes == PUBLISHED[name]
    assert row.name == "mxfp4"


def test_rows_have_the_sizes_that_synth_writes(tmp_path: Path) -> None:
    estimate = of_shape(load_shape("gpt-oss-tiny"), USE)
    assert len(estimate.rows) > 8
    for row in estimate.rows:
        recipe = load_recipe(row.name) if row.name in recipe_names() else recipe_of_format(row.name)
        path = tmp_path / (row.name + (".gguf" if row.container == "gguf" else ""))
        synthesize(plan_synthesis(load_shape("gpt-oss-tiny"), row.container, recipe), path)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.parameters == row.parameters
        if row.container == "hf":
            (file,) = path.glob("*.safetensors")
            assert sum(t.nbytes for t in SafetensorsFile(file).tensors.values()) == row.file_bytes


def test_a_checkpoint_is_judged_as_the_shape_it_has(tiny_gpt_oss: Path) -> None:
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        stored = of_checkpoint(checkpoint, "tiny", Use(512))
    shaped = of_shape(load_shape("gpt-oss-tiny"), Use(512))
    sizes = {r.name: r.file_bytes for r in shaped.rows}
    assert {r.name: r.file_bytes for r in stored.rows if r.name in sizes} == {
        n: s for n, s in sizes.items() if n in {r.name for r in stored.rows}
    }
    assert next(r for r in stored.rows if r.published).file_bytes == sizes["mxfp4"]


@pytest.mark.parametrize(
    "recipe", ["mxfp4", "bf16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8", "q8_0", "q4_1"))]
)
@pytest.mark.parametrize("shape", ["gpt-oss-tiny", "llama-tiny"])
def test_panels_and_bytes_per_token_are_the_engines(shape: str, recipe: str, tmp_path: Path) -> None:
    path = tmp_path / ("m.gguf" if recipe.startswith("q") else "m")
    synthesize(plan_synthesis(load_shape(shape), "gguf" if recipe.startswith("q") else "hf", load_recipe(recipe)), path)
    with open_checkpoint(path) as checkpoint:
        entries = list(checkpoint.entries.values())
        backend = NumbaBackend(checkpoint, Options(threads=1, context=128), lambda nbytes: None)
        weights: NumbaWeights = backend.weights
        ours = sum(panel_bytes(e) for e in entries if not e.spec.is_vector)
        theirs = sum(p.nbytes for p in weights.packed)
        assert ours == pytest.approx(theirs, rel=0.02)  # stacked matrices share the padding of their last panel
        read = bytes_per_token(checkpoint.architecture, entries, Use(128), 0.0)
        vectors = sum(panel_bytes(e) for e in entries if e.spec.is_vector)
        assert read == pytest.approx(weights.bytes_per_token(checkpoint.architecture) + vectors, rel=0.1)
        backend.close()


def test_sliding_layers_count_for_their_window_only() -> None:
    shape = load_shape("gpt-oss-20b")
    synthesis = plan_synthesis(shape, "hf")
    taken = {n: memory(synthesis.architecture, synthesis.entries, Tokenizer(), Use(n)) for n in (4096, 8192, 131072)}
    position = 12 * 2 * 8 * 64 * 2  # twelve layers of full attention, keys and values of 8 heads of 64 in bf16
    assert taken[8192].cache - taken[4096].cache == 4096 * position
    assert taken[131072].cache - taken[8192].cache == (131072 - 8192) * position
    sliding = taken[4096].cache - 4096 * position
    assert sliding == 12 * 2 * 8 * 64 * 2 * 128  # the window


def test_two_sequences_take_two_caches() -> None:
    synthesis = plan_synthesis(load_shape("gpt-oss-20b"), "hf")
    one, two = (memory(synthesis.architecture, synthesis.entries, Tokenizer(), Use(4096, n)) for n in (1, 2))
    assert two.cache == 2 * one.cache
    assert two.weights == one.weights


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_no_tokenizer_is_made_for_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 200,000 names for each format would take most of the time."""

    def refuse(*_: object) -> None:
        pytest.fail("a tokenizer was made")

    monkeypatch.setattr(synth, "byte_tokenizer", refuse)
    assert of_shape(load_shape("gpt-oss-20b"), USE).rows


@pytest.mark.slow
def test_published_weights_are_chosen_where_they_fit(large: Estimate) -> None:
    choice = choose(large, machine(ram=128))
    assert choice.row
    assert choice.row.name == "mxfp4"
    assert "no value changes" in choice.reason


def test_a_card_that_holds_four_bits_and_not_eight(large: Estimate) -> None:
    choice = choose(large, machine(ram=24, vram=80))
    assert choice.row
    assert choice.row.name == "mxfp4"
    assert "though not the memory" in choice.reason
    assert "gpt-oss-120b in int8 needs 119 GB: no 80 GB card holds it; mxfp4 needs 65.8 GB" in choice.limits


def test_nothing_fits(large: Estimate) -> None:
    choice = choose(large, machine(ram=16))
    assert choice.row is None
    assert "nothing fits: even mxfp4-q8 needs 64" in choice.reason
    disk = choose(large, machine(ram=1000, disk=10))
    assert disk.row is None
    assert "of disk" in disk.reason


def test_a_dense_model_in_bf16_is_halved() -> None:
    estimate = of_shape(load_shape("llama-3.2-1b-like"), USE)
    choice = choose(estimate, machine(ram=16))
    assert choice.row
    assert choice.row.name in ("q8_0", "int8")
    assert "lose little" in choice.reason
    tight = choose(estimate, machine(ram=1.9))
    assert tight.row
    assert tight.row.bits_per_weight < 8


def test_speed_is_a_range_below_what_memory_allows() -> None:
    for row in of_shape(load_shape("gpt-oss-20b"), USE).rows:
        slow, fast = row.speed(50e9)
        assert 0 < slow < fast <= 50e9 / row.token_bytes[0]
        assert row.token_bytes[0] < row.memory.weights  # not every expert is read


# ---- the command ----------------------------------------------------------------------------------------------------


def fit(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return oss_tools("fit", *arguments, cwd=cwd)


def test_the_command_prints_a_table_and_json(tiny_gpt_oss: Path) -> None:
    given = ("--ram", "16GiB", "--bandwidth", "50GB")
    done = fit("gpt-oss-20b", *given)
    assert done.returncode == 0, done.stderr
    assert "choice  mxfp4" in done.stdout
    found = json.loads(fit("gpt-oss-20b", *given, "--json", "--context", "8192").stdout)
    assert found["context"] == 8192
    assert found["machine"]["ram_bytes"] == 16 << 30
    assert {r["name"]: r["file_bytes"] for r in found["rows"]}["mxfp4"] == PUBLISHED["gpt-oss-20b"]
    for row in found["rows"]:
        m = row["memory"]
        parts = sum(m[k] for k in ("weights", "cache", "prefixes", "activations", "program"))
        assert m["total"] == parts
    assert "as stored *" in fit(tiny_gpt_oss, *given).stdout
    assert "gpt_oss" in json.loads(fit(tiny_gpt_oss / "config.json", *given, "--json").stdout)["model_type"]


def test_a_folder_comes_before_a_shape_of_the_same_name(tiny_gpt_oss: Path) -> None:
    assert "as stored *" in fit("gpt-oss-tiny", "--bandwidth", "1GB", cwd=tiny_gpt_oss.parent).stdout
    assert "as stored *" not in fit("gpt-oss-tiny", "--bandwidth", "1GB").stdout


def test_what_is_found_on_this_machine_is_said() -> None:
    found = json.loads(fit("gpt-oss-tiny", "--json").stdout)
    assert {"ram", "disk", "bandwidth"} <= set(found["machine"]["detected"])
    assert 1e8 < found["machine"]["bandwidth_bytes_per_second"] < 1e13


def test_a_context_that_the_model_was_not_made_for_is_refused() -> None:
    done = fit("llama-tiny", "--context", "4096", "--bandwidth", "1GB")
    assert done.returncode == 2
    assert "made for 2048 at most" in done.stderr
