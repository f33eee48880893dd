"""Headers and lists with more in them than any model has: refused before they are looked at one by one."""

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import TokenType

from oss_tools.checkpoints import gguf_header, gguf_values, index, json_files, safetensors, shards
from oss_tools.checkpoints.gguf import GgufReader
from oss_tools.checkpoints.hf import HfReader
from oss_tools.checkpoints.json_files import parse_json, parse_value
from oss_tools.checkpoints.safetensors import MAX_VALUES, SafetensorsFile
from oss_tools.checkpoints.tokenizers.added_tokens import MAX_REMARKS, Companions, with_added_tokens
from oss_tools.checkpoints.tokenizers.gguf_sentencepiece import merges_of_scores
from oss_tools.checkpoints.tokenizers.tekken import tokenizer_of_tekken
from oss_tools.checkpoints.tokenizers.vocab_merges import tokenizer_of_files
from oss_tools.errors import BadCheckpoint


def header(path: Path, text: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entries(names: list[str]) -> bytes:
    return json.dumps({name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()


MANY_VALUES = {
    "tensors": b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(500_000)) + b"}",
    "lists": b'{"a":[' + b",".join([b"[]"] * 2_000_000) + b"]}",
    "a shape": b'{"a":{"dtype":"U8","data_offsets":[0,0],"shape":[' + b",".join([b"1"] * 4_000_000) + b"]}}",
    "metadata": b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(4_000_000)) + b"}}",
}


@pytest.mark.parametrize("name", MANY_VALUES)
def test_a_header_with_millions_of_values_is_not_parsed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: Any, **__: Any) -> None:
        pytest.fail("it was parsed")

    path = header(tmp_path / "model.safetensors", MANY_VALUES[name])
    monkeypatch.setattr(json_files.json, "loads", parsed)
    with pytest.raises(
        BadCheckpoint, match=rf"model\.safetensors: header: some \d+ values of JSON, more than the {MAX_VALUES}"
    ):
        SafetensorsFile(path)


def test_tensors_are_counted_before_they_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 3)
    names = ["\n", "a", "b", "c"]  # the first of which would be refused for itself
    with pytest.raises(BadCheckpoint, match="4 tensors, more than the 3 that a file may hold"):
        SafetensorsFile(header(tmp_path / "a.safetensors", entries(names)))
    SafetensorsFile(header(tmp_path / "b.safetensors", entries(names[1:]))).close()


def test_the_tensors_of_all_shards_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_TENSORS", 3)
    monkeypatch.setattr(index, "MAX_TENSORS", 3)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for part in (1, 2):
        header(tmp_path / f"model-{part:05d}-of-00002.safetensors", entries([f"{part}.a", f"{part}.b"]))
    with pytest.raises(BadCheckpoint, match="more than the 3 tensors that a model may have"):
        HfReader(tmp_path)
    listed = {f"{part}.{name}": f"model-{part:05d}-of-00002.safetensors" for part in (1, 2) for name in "ab"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(BadCheckpoint, match=r"index\.json: 4 tensors, more than the 3 allowed"):
        HfReader(tmp_path)


def test_json_is_no_deeper_than_what_can_be_written_again() -> None:
    def deep(levels: int) -> bytes:
        return b'{"a":' * levels + b"0" + b"}" * levels

    assert parse_json(deep(json_files.MAX_DEPTH), "x")
    with pytest.raises(BadCheckpoint, match="x: JSON nested too deeply"):
        parse_json(deep(json_files.MAX_DEPTH + 1), "x")
    with pytest.raises(BadCheckpoint, match="x: JSON nested too deeply"):
        parse_value(b"[[1]," * 200 + b"1" + b"]" * 200, "x")
    for levels in (500, 900, 100_000):
        with pytest.raises(BadCheckpoint, match="x: JSON nested too deeply"):
            parse_json(deep(levels), "x")


def gguf(path: Path, keys: list[bytes], tensors: int = 0) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, len(keys)) + b"".join(keys) + bytes(40 * tensors))
    return path


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def texts(name: bytes, count: int) -> bytes:
    return string(name) + struct.pack("<IIQ", 9, 8, count) + string(b"") * count


def test_gguf_files_with_millions_of_texts_or_tensors(tmp_path: Path) -> None:
    half = gguf_values.MAX_STRINGS // 2
    with pytest.raises(BadCheckpoint, match="key b and the lists before it hold"):
        GgufReader(gguf(tmp_path / "a.gguf", [texts(b"a", half), texts(b"b", half + 1)]))
    with pytest.raises(BadCheckpoint, match="the header claims 65537 tensors"):
        GgufReader(gguf(tmp_path / "b.gguf", [], gguf_header.MAX_TENSORS + 1))


def test_vocabularies_made_for_many_merges() -> None:
    """All words of two letters: each is made of two others at every place. And long ones, which are cut at every place."""
    words = ["".join(letters) for length in range(1, 18) for letters in itertools.product("ab", repeat=length)]
    types = np.full(len(words), TokenType.NORMAL, np.int32)
    with pytest.raises(BadCheckpoint, match="merges; no model needs that"):
        merges_of_scores(words, types, np.zeros(len(words), np.float32))
    long = [f"{n:08d}" * 40 for n in range(50_000)]
    with pytest.raises(BadCheckpoint, match="can be cut in two in"):
        merges_of_scores(long, types[: len(long)], np.zeros(len(long), np.float32))


def test_older_vocabularies_made_for_much_work() -> None:
    import base64

    from oss_tools.checkpoints.gguf_splitters import TEKKEN

    tokens = [bytes([n]) for n in range(256)] + [b"%04d" % n * 250 for n in range(100)]
    listed = [{"rank": n, "token_bytes": base64.b64encode(token).decode()} for n, token in enumerate(tokens)]
    config = {"pattern": TEKKEN, "default_num_special_tokens": 20, "default_vocab_size": len(tokens) + 20}
    with pytest.raises(BadCheckpoint, match=r"tekken\.json: its tokens are very long"):
        tokenizer_of_tekken({"config": config, "vocab": listed})
    with pytest.raises(BadCheckpoint, match=r"merges\.txt: \d+ lines, more than"):
        tokenizer_of_files({"a": 0}, "\n" * 5_000_000, {})


def test_many_added_tokens_take_no_time_and_few_remarks() -> None:
    """As numbers in the gaps of a vocabulary, each of which was sought among all; and as numbers that are not taken."""
    count = 30_000
    vocab = {f"t{n}": 2 * n for n in range(count)}
    gaps = {f"<{n}>": 2 * n + 1 for n in range(count)}
    found, remarks = with_added_tokens({"model": {"vocab": vocab}, "added_tokens": []}, Companions(added=gaps))
    assert {token["content"]: token["id"] for token in found["added_tokens"]} == gaps
    assert not remarks
    beyond = {name: number + 10**6 for name, number in gaps.items()}
    _, remarks = with_added_tokens({"model": {"vocab": vocab}, "added_tokens": []}, Companions(added=beyond))
    assert len(remarks) == MAX_REMARKS + 1
    assert remarks[-1].endswith("more such tokens")
