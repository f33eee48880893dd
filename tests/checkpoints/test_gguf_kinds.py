"""Dialects of GGUF: Ollama's layout of gpt-oss, integers and doubles among the tensors, formats that are gone."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from oss_tools.checkpoints import gguf_kinds, open_container
from oss_tools.errors import BadCheckpoint
from oss_tools.models.checkpoint import open_checkpoint
from tests.checkpoints.small_models import GPT_OSS, LLAMA, save

C = GPT_OSS.config
HIDDEN, INNER, EXPERTS = C.hidden_size, C.intermediate_size, C.num_local_experts
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # OCP MX, E2M1


class Ollama:
    """A gpt-oss as Ollama's converter writes it: names, keys and order of rows after its `convert_gptoss.go`."""

    def __init__(self, path: Path, early: bool) -> None:
        self.path, self.early = path, early
        self.random = np.random.default_rng(0)
        self.values: dict[str, np.ndarray] = {}
        self.writer = gguf.GGUFWriter(path, "gptoss")
        self.write()

    def write(self) -> None:
        heads, keys = C.num_attention_heads * C.head_dim, C.num_key_value_heads * C.head_dim
        self.keys()
        self.floats("token_embd.weight", C.vocab_size, HIDDEN)
        self.floats("output.weight", C.vocab_size, HIDDEN)
        self.floats("output_norm.weight", HIDDEN)
        for layer in range(C.num_hidden_layers):
            at = f"blk.{layer}."
            for name, *shape in (
                ("attn_norm.weight", HIDDEN), ("ffn_norm.weight", HIDDEN), ("attn_sinks", C.num_attention_heads),
                ("attn_q.weight", heads, HIDDEN), ("attn_q.bias", heads),
                ("attn_k.weight", keys, HIDDEN), ("attn_k.bias", keys),
                ("attn_v.weight", keys, HIDDEN), ("attn_v.bias", keys),
                ("attn_out.weight", HIDDEN, heads), ("attn_out.bias", HIDDEN),
                ("ffn_gate_inp.weight", EXPERTS, HIDDEN), ("ffn_gate_inp.bias", EXPERTS),
                ("ffn_gate_up_exps.bias", EXPERTS, 2 * INNER), ("ffn_down_exps.bias", EXPERTS, HIDDEN),
            ):  # fmt: skip
                self.floats(at + str(name), *shape)
            self.mxfp4(f"{at}ffn_gate_up_exps.weight", 2 * INNER, HIDDEN)
            self.mxfp4(f"{at}ffn_down_exps.weight", HIDDEN, INNER)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        if self.early:
            self.number_as_early_files_do()

    def keys(self) -> None:
        for key, number in {
            "block_count": C.num_hidden_layers, "context_length": C.max_position_embeddings, "embedding_length": HIDDEN,
            "feed_forward_length": INNER, "expert_count": EXPERTS, "expert_used_count": C.num_experts_per_tok,
            "attention.head_count": C.num_attention_heads, "attention.head_count_kv": C.num_key_value_heads,
            "attention.key_length": C.head_dim, "attention.value_length": C.head_dim,
            "attention.sliding_window": C.sliding_window, "rope.scaling.original_context_length": C.rope_original_context,
        }.items():  # fmt: skip
            self.writer.add_uint32(f"gptoss.{key}", number)
        for key, real in {
            "attention.layer_norm_rms_epsilon": C.rms_norm_eps,
            "rope.freq_base": C.rope_theta,
            "rope.scaling.factor": C.rope_factor,
        }.items():
            self.writer.add_float32(f"gptoss.{key}", real)
        self.writer.add_token_list([f"t{number}" for number in range(C.vocab_size)])

    def floats(self, name: str, *shape: int) -> None:
        self.values[name] = self.random.standard_normal(shape).astype(np.float32)
        self.writer.add_tensor(name, self.values[name])

    def mxfp4(self, name: str, rows: int, columns: int) -> None:
        """Blocks of a scale and 16 bytes. ggml's byte j holds values j and j + 16; in early files, 2j and 2j + 1."""
        codes = self.random.integers(0, 16, (EXPERTS, rows, columns // 32, 32), dtype=np.uint8)
        scales = self.random.integers(118, 130, (EXPERTS, rows, columns // 32, 1), dtype=np.uint8)
        low, high = (codes[..., 0::2], codes[..., 1::2]) if self.early else (codes[..., :16], codes[..., 16:])
        blocks = np.concatenate([scales, low | high << 4], axis=-1).reshape(EXPERTS, rows, -1)
        self.writer.add_tensor(name, blocks, raw_shape=blocks.shape, raw_dtype=GGMLQuantizationType.MXFP4)
        self.values[name] = (VALUES[codes] * np.exp2(scales.astype(np.float32) - 127)).reshape(EXPERTS, rows, columns)
        if not self.early:  # gguf-py's own decoding says that the blocks are right
            assert np.array_equal(quants.dequantize(blocks, GGMLQuantizationType.MXFP4), self.values[name])

    def number_as_early_files_do(self) -> None:
        data = bytearray(self.path.read_bytes())
        for name in self.values:
            if name.endswith("_exps.weight"):
                kind = data.index(name.encode()) + len(name) + 4 + 3 * 8  # behind the count of axes and three axes
                assert data[kind] == GGMLQuantizationType.MXFP4
                data[kind] = 4
        self.path.write_bytes(data)


@pytest.mark.parametrize("early", [False, True], ids=["type 39", "type 4"])
def test_ollamas_gpt_oss_is_read(tmp_path: Path, early: bool) -> None:
    written = Ollama(tmp_path / ("sha256-" + "ab" * 32), early).values
    with open_checkpoint(tmp_path / ("sha256-" + "ab" * 32)) as checkpoint:
        assert checkpoint.architecture.config == C
        assert gguf_kinds.OLLAMA_REMARK in checkpoint.remarks
        ours = {
            "self_attn.o_proj.weight": "attn_out.weight",
            "self_attn.o_proj.bias": "attn_out.bias",
            "self_attn.sinks": "attn_sinks",
            "post_attention_layernorm.weight": "ffn_norm.weight",
            "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",  # rows of gate and up in turn, as in OpenAI's files
            "mlp.experts.gate_up_proj_bias": "ffn_gate_up_exps.bias",
            "mlp.experts.down_proj": "ffn_down_exps.weight",
            "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
            "mlp.router.weight": "ffn_gate_inp.weight",
            "self_attn.q_proj.weight": "attn_q.weight",
        }
        for layer in range(C.num_hidden_layers):
            for name, theirs in ours.items():
                found = checkpoint.read_tensor(f"model.layers.{layer}.{name}")
                assert np.array_equal(found.dequantize(), written[f"blk.{layer}.{theirs}"]), name
        assert checkpoint.entries["model.layers.0.mlp.experts.down_proj"].format.name == "mxfp4"
        assert checkpoint.reader.raw_config["tokenizer.ggml.pre"] == "gpt-4o"


def test_a_fault_in_ollamas_tokenizer_says_whose_layout_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    Ollama(path, early=False)
    reader = open_container(path)
    reader.raw_config["tokenizer.ggml.model"] = "gpt2"
    reader.raw_config["tokenizer.ggml.tokens"] = 5
    with pytest.raises(BadCheckpoint, match="Ollama's own layout"):
        reader.metadata({})


def add_tensor(source: Path, target: Path, name: str, array: np.ndarray) -> None:
    """A GGUF file with one tensor more or another one, written by the gguf package."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = field.contents()
            writer.add_key_value(key, value, field.types[0], sub_type=field.types[-1])
    for tensor in reader.tensors:
        if tensor.name != name:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save(LLAMA, "gguf", tmp_path, dict.fromkeys(("norm", "bias", "router", "sinks"), "f32"))
    return tmp_path / "model.gguf"


def test_a_folder_of_a_model_and_what_travels_with_it(small: Path) -> None:
    for name in ("mmproj-F16.gguf", "model.imatrix.gguf"):
        (small.parent / name).write_bytes(b"GGUF")
    with open_checkpoint(small.parent) as checkpoint:
        assert checkpoint.reader.files() == [small]
    small.rename(small.parent / "a.gguf")
    (small.parent / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadCheckpoint, match=r"holds 2 GGUF models \(a\.gguf, b\.gguf\)"):
        open_checkpoint(small.parent)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_tensors_of_integers_are_left_out(small: Path, tmp_path: Path, dtype: type) -> None:
    add_tensor(small, tmp_path / "more.gguf", "blk.0.position_ids", np.arange(8, dtype=dtype))
    with open_checkpoint(tmp_path / "more.gguf") as checkpoint:
        assert "not the model's, and left out: blk.0.position_ids" in checkpoint.remarks


def test_doubles_are_read(small: Path, tmp_path: Path) -> None:
    values = np.linspace(-1, 1, LLAMA.config.hidden_size)
    add_tensor(small, tmp_path / "more.gguf", "output_norm.weight", values)
    with open_checkpoint(tmp_path / "more.gguf") as checkpoint:
        found = checkpoint.read_tensor("model.norm.weight").dequantize()
    assert np.array_equal(found, values.astype(np.float32))


def test_strange_tensors_are_refused_or_left_out(small: Path, tmp_path: Path) -> None:
    row = np.ones((1, LLAMA.config.hidden_size), np.float32)
    add_tensor(small, tmp_path / "head.gguf", "cls.output.weight", row)
    with open_checkpoint(tmp_path / "head.gguf") as checkpoint:
        assert "not the model's, and left out: cls.output.weight" in checkpoint.remarks
    for name in ("blk.0.attn_q_norm.weight", "output_norm.bias", "rope_factors_long.weight", "blk.1.attn_q.weight.lora_a"):
        add_tensor(small, tmp_path / "x.gguf", name, row)
        with pytest.raises(BadCheckpoint, match=name):
            open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("number", "said"), [(31, "Q4_0_4_4 .type 31., which llama.cpp has removed"), (137, "ik_llama.cpp's own")]
)
def test_formats_that_gguf_py_does_not_know_are_named(small: Path, number: int, said: str) -> None:
    data = bytearray(small.read_bytes())
    name = b"blk.1.attn_q.weight"
    kind = data.index(name) + len(name) + 4 + 2 * 8
    data[kind : kind + 4] = number.to_bytes(4, "little")
    small.write_bytes(data)
    with pytest.raises(BadCheckpoint, match=said) as caught:
        open_checkpoint(small)
    assert name.decode() in str(caught.value)
