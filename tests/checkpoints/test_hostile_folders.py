"""Folders whose configuration or companions are made to take time, memory or the program down."""

import json
from pathlib import Path
from typing import Any

import pytest

from oss_tools.checkpoints import companions, shards
from oss_tools.checkpoints.assemble import assemble
from oss_tools.checkpoints.hf import HfReader
from oss_tools.checkpoints.safetensors import RawTensor
from oss_tools.checkpoints.templates import MAX_TEMPLATE, MAX_TEMPLATES, of_folder, of_gguf
from oss_tools.errors import BadCheckpoint

ROW = RawTensor("a.weight", "I8", (2, 128), 0, 256)
SCALE = RawTensor("a.weight_scale", "BF16", (2, 1), 256, 4)


def format_by(quantization: Any) -> str:
    raw = {tensor.name: tensor for tensor in (ROW, SCALE)}
    return assemble(raw, {"quantization_config": quantization}, lambda _: False, "x").layouts["a.weight"].tensor.format.name


@pytest.mark.parametrize(
    "quantization",
    [
        *([], "int8", {"config_groups": [1, 2]}, {"config_groups": {"a": 7}}, {"config_groups": {"a": {"weights": []}}}),
        *({"config_groups": {"a": {"weights": {"num_bits": 8, "strategy": ["group"]}}}}, {"quant_method": "oss-tools"}),
        {"quant_method": "oss-tools", "formats": ["int8"]},
    ],
)
def test_groups_of_any_kind_declare_nothing(quantization: Any) -> None:
    assert format_by(quantization) == "int8"


def test_groups_are_looked_through_once() -> None:
    """They were for each tensor."""
    looked = 0

    class Groups(dict[str, Any]):
        def values(self) -> Any:
            nonlocal looked
            looked += 1
            return super().values()

    groups = Groups(a={"weights": {"num_bits": 8, "strategy": "group"}})
    raw: dict[str, RawTensor] = {}
    for n in range(50):
        raw[f"{n}.weight"] = RawTensor(f"{n}.weight", "I8", (2, 128), 0, 256)
        raw[f"{n}.weight_scale"] = RawTensor(f"{n}.weight_scale", "BF16", (2, 1), 256, 4)
    found = assemble(raw, {"quantization_config": {"config_groups": groups}}, lambda _: False, "x")
    assert {layout.tensor.format.name for layout in found.layouts.values()} == {"int8_g128"}
    assert looked == 1


def test_zero_points_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "AT_ONCE", 7)
    entry = {"dtype": "U8", "shape": [20], "data_offsets": [0, 20]}
    text = json.dumps({"a.weight_zero_point": entry}).encode()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for last, listed in ((0, []), (1, ["a.weight_zero_point"])):
        data = bytes(19) + bytes([last])
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
        reader = HfReader(tmp_path)
        assert list(reader.others) == listed
        reader.close()


def test_companions_have_a_size_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companions, "MAX_CARRIED", 100)
    for name in ("LICENSE", "LICENSE.a", "LICENSE.b", "NOTICE"):
        (tmp_path / name).write_bytes(b"x" * 40)
    carried = companions.read_metadata(tmp_path, {}).files
    assert sorted(carried) == ["LICENSE", "LICENSE.a"]


def test_templates_have_a_size(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * (MAX_TEMPLATE + 1))
    with pytest.raises(BadCheckpoint, match=r"chat_template\.jinja: larger than"):
        of_folder(tmp_path, {})


def test_templates_of_a_gguf_file_are_counted() -> None:
    keys = {f"tokenizer.chat_template.t{n}": "x" for n in range(MAX_TEMPLATES)}
    assert len(of_gguf(keys, "x")) == MAX_TEMPLATES
    with pytest.raises(BadCheckpoint, match="x: 65 chat templates, more than 64"):
        of_gguf(keys | {"tokenizer.chat_template": "y"}, "x")
