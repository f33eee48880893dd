"""Random checkpoints: published sizes, the same bytes from the same seed, sane values, nothing left behind."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.convert import synth
from oss_tools.convert.drawing import distribution, draw
from oss_tools.convert.recipe import recipe_of_format, writable_formats
from oss_tools.convert.synth import load_shape, plan_synthesis, shape_names, synthesize
from oss_tools.download.registry import published
from oss_tools.errors import BadCheckpoint, BadRecipe, NoRoom
from oss_tools.formats import concatenate
from oss_tools.models import open_checkpoint


@pytest.mark.parametrize(
    ("name", "parameters", "nbytes"),
    [
        ("gpt-oss-20b", 20_914_757_184, 13_761_264_768),  # metadata.total_size of the published index files
        ("gpt-oss-120b", 116_829_156_672, 65_248_815_744),
        ("llama-3.2-1b-like", 1_235_814_400, 2_471_628_800),
        (
            "mixtral-8x7b",
            46_702_792_704,
            93_405_585_408,
        ),  # two bytes a parameter: what is published is BF16 or F16 throughout
        ("qwen2.5-7b", 7_615_616_512, 15_231_233_024),
        ("r1-distill-qwen-7b", 7_615_616_512, 15_231_233_024),
        ("qwen3-8b", 8_190_735_360, 16_381_470_720),
        ("qwen3-30b-a3b", 30_532_122_624, 61_064_245_248),
        ("qwen3-235b-a22b", 235_093_634_560, 470_187_269_120),
        ("deepseek-v2-lite", 15_706_484_224, 31_412_968_448),
        ("deepseek-r1", 671_026_419_200, 673_150_582_112),  # FP8; 688,574,839,360 with the layer of multi-token prediction
        ("gpt2", 124_439_808, 248_879_616),  # published in F32
        ("gpt2-xl", 1_557_611_200, 3_115_222_400),
        ("llama-2-7b", 6_738_415_616, 13_476_831_232),
        ("llama-3.1-8b", 8_030_261_248, 16_060_522_496),
        ("smollm2-135m", 134_515_008, 269_030_016),
    ],
)
def test_published_shapes_have_their_published_sizes(name: str, parameters: int, nbytes: int) -> None:
    synthesis = plan_synthesis(load_shape(name), "hf")
    assert sum(entry.spec.size for entry in synthesis.entries) == parameters
    assert synthesis.nbytes == nbytes


@pytest.mark.parametrize("name", shape_names())
def test_every_shape_says_what_it_is(name: str) -> None:
    shape = load_shape(name)
    assert shape.name == name
    assert plan_synthesis(shape, "hf").notes == ()


@pytest.mark.parametrize("name", [name for name in shape_names() if name.endswith("-tiny")])
@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_every_tiny_shape_is_made_and_opened(tmp_path: Path, name: str, container: str) -> None:
    path = synthesize(
        plan_synthesis(load_shape(name), container), tmp_path / ("made.gguf" if container == "gguf" else "made")
    )
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.architecture.model_type == load_shape(name).config["model_type"]
        specs = {spec.name: spec for spec in checkpoint.architecture.tensors()}
        assert sum(spec.size for spec in specs.values()) >= sum(
            entry.spec.size for entry in plan_synthesis(load_shape(name), container).entries
        )


def test_what_the_hub_holds_of_published_shapes() -> None:
    """Two bytes a parameter, but for GPT-2 (F32, with a mask a layer) and R1 (FP8 in blocks, with a layer more)."""
    for name, entry in published().items():
        shape = load_shape(name)
        nbytes = plan_synthesis(shape, "hf").nbytes
        if name.startswith("gpt2"):
            nbytes = 2 * nbytes + 4 * 1024 * 1024 * shape.config["n_layer"]
        if name != "deepseek-r1":
            assert entry.nbytes == nbytes, name


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_seed_makes_the_same_bytes_whatever_the_threads(tmp_path: Path, tiny_gpt_oss: Path) -> None:
    shape = load_shape("gpt-oss-tiny")
    again = synthesize(plan_synthesis(shape, "hf"), tmp_path / "again", threads=3)
    other = synthesize(plan_synthesis(shape, "hf", seed=1), tmp_path / "other")
    assert contents(again) == contents(tiny_gpt_oss)
    assert contents(other)["model.safetensors"] != contents(tiny_gpt_oss)["model.safetensors"]
    assert contents(other)["config.json"] == contents(tiny_gpt_oss)["config.json"]


@pytest.mark.parametrize("format", ["mxfp4", "bf16", "f32"])
def test_rows_do_not_depend_on_how_they_are_chunked(format: str) -> None:
    synthesis = plan_synthesis(load_shape("gpt-oss-tiny"), "hf", recipe_of_format(format))
    for entry in synthesis.entries:
        matrices, rows, _ = entry.spec.matrices
        matrix, cut = matrices - 1, rows // 3
        whole = draw(entry, synthesis.architecture, 5, matrix, 0, rows)
        pieces = [
            draw(entry, synthesis.architecture, 5, matrix, *ends) for ends in ((0, cut), (cut, rows)) if ends[0] < ends[1]
        ]
        joined = concatenate(pieces)
        assert all(np.array_equal(whole.planes[name], joined.planes[name]) for name in whole.planes)


def test_weights_have_the_deviation_meant_for_their_role() -> None:
    synthesis = plan_synthesis(load_shape("gpt-oss-small"), "hf")
    for entry in synthesis.entries[:20]:
        _, rows, _ = entry.spec.matrices
        mean, deviation = distribution(entry.spec, synthesis.architecture)
        values = draw(entry, synthesis.architecture, 0, 0, 0, min(rows, 2048)).dequantize()
        slack = 6 * deviation / values.size**0.5
        assert abs(values.mean() - mean) < slack, entry.name
        assert abs(values.std() / deviation - 1) < 0.02 + 6 / values.size**0.5, entry.name


@pytest.mark.parametrize("format", writable_formats())
def test_every_format_can_be_drawn(format: str) -> None:
    synthesis = plan_synthesis(load_shape("llama-tiny"), "hf", recipe_of_format(format).falling_back(("bf16",)))
    entry = next(e for e in synthesis.entries if e.spec.role == "mlp.down")
    entry = synth.Entry(entry.spec, synth.get_format(format), entry.placements)
    if not entry.format.fits(entry.spec.matrices[2]):
        pytest.skip(f"128 columns are no multiple of {entry.format.block}")
    values = draw(entry, synthesis.architecture, 0, 0, 0, entry.spec.shape[0]).dequantize()
    _, deviation = distribution(entry.spec, synthesis.architecture)
    assert abs(values.std() / deviation - 1) < 0.1


def test_another_number_of_layers(tmp_path: Path) -> None:
    shape = load_shape("gpt-oss-tiny").with_layers(3)
    made = synthesize(plan_synthesis(shape, "hf"), tmp_path / "three")
    config = json.loads((made / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    with open_checkpoint(made) as checkpoint:
        assert "model.layers.2.mlp.experts.down_proj" in checkpoint.entries


def test_a_config_json_is_a_shape_too(tmp_path: Path, tiny_llama: Path) -> None:
    made = synthesize(plan_synthesis(load_shape(tiny_llama / "config.json"), "hf"), tmp_path / "copy")
    assert contents(made)["model.safetensors"] == contents(tiny_llama)["model.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no model configuration"),
        ('{"config": 3}', "holds no model configuration"),
        ('{"model_type": "mamba"}', "architecture 'mamba' is not supported"),
        ('{"model_type": "llama", "hidden_size": -1}', "num_hidden_layers is missing"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_bad_config_is_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadCheckpoint, match=message) as raised:
        plan_synthesis(load_shape(tmp_path / "config.json"), "hf")
    assert "\n" not in str(raised.value)


def test_an_unknown_shape_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadCheckpoint, match=r"There are .*gpt-oss-120b, gpt-oss-20b"):
        load_shape("gpt-6")


def test_an_existing_destination_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(BadRecipe, match="exists"):
        synthesize(plan_synthesis(load_shape("llama-tiny"), "hf"), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_the_disk_is_checked_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**10))
    with pytest.raises(NoRoom, match=r"13\.8 GB are needed and 10 GB are free"):
        synthesize(plan_synthesis(load_shape("gpt-oss-20b"), "hf"), tmp_path / "new" / "large")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(plan_synthesis(load_shape("gpt-oss-tiny"), "hf"), tmp_path / "model", threads=2, advance=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_has_every_id_once_and_real_special_ids() -> None:
    tokenizer = byte_tokenizer("gpt_oss", 201088)
    assert tokenizer
    added = {token["content"]: token["id"] for token in tokenizer.content["added_tokens"]}
    assert added["<|return|>"] == 200002
    vocabulary = tokenizer.content["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(201088))
    assert added.items() <= vocabulary.items()
    assert byte_tokenizer("llama", 100) is None


@pytest.mark.parametrize(("model_type", "vocabulary"), [("gpt_oss", 768), ("llama", 512), ("gpt_oss", 201088)])
def test_the_tokenizer_reads_and_writes_any_text(model_type: str, vocabulary: int) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = byte_tokenizer(model_type, vocabulary)
    assert made
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(made.content))
    text = "The rain in Spain,\n\tcafé 東京 🚀 <b>12345</b>"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids) == text
    assert "ĠThe" not in encoded.tokens
    assert "in" in encoded.tokens
    assert max(encoded.ids) < vocabulary
    assert tokenizer.get_vocab_size() == vocabulary
    assert {t["id"] for t in made.content["added_tokens"]} == set(tokenizer.get_added_tokens_decoder())
