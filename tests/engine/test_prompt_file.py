"""A prompt in a file: the same tokens as without it, and a file that is not what it says is refused before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from oss_tools.checkpoints.safetensors import SafetensorsFile
from oss_tools.engine import prompt_file
from oss_tools.engine.engine import Engine
from oss_tools.engine.prompt_file import KIND, PromptFile
from oss_tools.engine.requests import Request
from oss_tools.errors import BadCheckpoint, BadRequest, NoRoom
from oss_tools.models import open_checkpoint
from oss_tools.models.identity import sampled_digest

MODEL, COMPUTED = "0" * 64, "numba, activations int8"


def loaded(path: Path, **options: object) -> Engine:
    settings = {"context": 1024, "threads": 2, "prefix_budget": 1 << 26} | options
    return Engine.load(path, **settings)  # type: ignore[arg-type]


def tokens_of(engine: Engine, prompt: list[int]) -> list[int]:
    return [token.id for token in engine.generate(Request(prompt, 24, stop_tokens=frozenset()))]


@pytest.fixture(scope="module", params=["gpt_oss", "llama"])
def model(request: pytest.FixtureRequest, tiny_gpt_oss: Path, tiny_llama: Path) -> Path:
    return tiny_gpt_oss if request.param == "gpt_oss" else tiny_llama


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return loaded(model)


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> list[int]:
    """400 tokens: past the sliding window of 128, and of several pages."""
    return np.random.default_rng(3).integers(0, engine.backend.vocabulary, 400).tolist()


@pytest.fixture(scope="module")
def written(engine: Engine, prompt: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "kept"
    tokens_of(engine, prompt)
    assert PromptFile(path, MODEL, COMPUTED).write(engine, prompt) == 400
    return path


@pytest.mark.parametrize("activations", ["int8", "f32"])  # whose caches are bf16 and f32
def test_the_tokens_are_those_of_a_run_without_the_file(
    model: Path, prompt: list[int], tmp_path: Path, activations: str
) -> None:
    first = loaded(model, activations=activations)
    expected = tokens_of(first, prompt)
    file = PromptFile(tmp_path / "kept", MODEL, COMPUTED)
    assert file.write(first, prompt) == len(prompt)
    second = loaded(model, activations=activations, prefix_budget=0)
    assert PromptFile(tmp_path / "kept", MODEL, COMPUTED).read_into(second) == len(prompt)
    assert tokens_of(second, prompt) == expected
    assert second.computed < len(prompt)  # the last token of the prompt and what was generated
    other = [*prompt[:300], *prompt[:50]]
    assert tokens_of(second, other) == tokens_of(loaded(model, activations=activations, prefix_budget=0), other)


def test_keys_and_values_come_back_bit_for_bit(engine: Engine, model: Path, prompt: list[int], written: Path) -> None:
    other = loaded(model, prefix_budget=0)
    PromptFile(written, MODEL, COMPUTED).read_into(other)
    expected, found = (np.concatenate(e.prefixes.longest(prompt)[1]) for e in (engine, other))
    np.testing.assert_array_equal(found, expected)


def test_a_file_is_read_in_pieces_and_as_far_as_the_context(
    model: Path, prompt: list[int], written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_file, "PIECE", 7 * 4096)
    short = loaded(model, context=200, prefix_budget=0)
    assert PromptFile(written, MODEL, COMPUTED).read_into(short) == 200
    assert short.prefixes.longest(prompt)[0] == 200
    assert tokens_of(short, prompt[:150]) == tokens_of(loaded(model, prefix_budget=0), prompt[:150])


def test_a_file_is_the_users_alone_and_stays_where_nothing_is_new(
    engine: Engine, prompt: list[int], written: Path, tmp_path: Path
) -> None:
    path = tmp_path / "kept"
    path.write_bytes(written.read_bytes())
    file = PromptFile(path, MODEL, COMPUTED)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert file.write(engine, prompt[:100]) == 100
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    changed = [*prompt[:100], *prompt[:100]]
    tokens_of(engine, changed)
    assert file.write(engine, changed) == 200
    assert file.read_into(engine) == 200
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["kept"]


def test_an_interrupted_write_leaves_the_old_file(
    engine: Engine, prompt: list[int], written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept"
    path.write_bytes(written.read_bytes())
    tokens_of(engine, prompt[5:200])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prompt_file.SafetensorsWriter, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PromptFile(path, MODEL, COMPUTED).write(engine, prompt[5:200])
    assert path.read_bytes() == written.read_bytes()
    assert os.listdir(tmp_path) == ["kept"]


def test_what_a_short_memory_cannot_hold_is_said(model: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = loaded(model, prefix_budget=0)
    monkeypatch.setattr(prompt_file, "available_memory", lambda: 1000)
    with pytest.raises(NoRoom, match=re.escape(f"{written}: its 400 tokens take") + ".* lower --context"):
        PromptFile(written, MODEL, COMPUTED).read_into(engine)


# ---- hostile files ------------------------------------------------------------------------------------------------------


def parts(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def forged(path: Path, header: dict, data: bytes) -> Path:
    """The file with this header, whose hash is right: who forges a file computes it too."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    ordered = [entries[name]["data_offsets"] for name in ("tokens", "keys_and_values") if name in entries]
    digest = hashlib.sha256(b"".join(data[first:last] for first, last in ordered)).hexdigest()
    metadata = {"format": KIND, "model": MODEL, "computed": COMPUTED, "sha256": digest} | header.get("__metadata__", {})
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensors(dtype: str, shape: list[int], tokens: int, size: int, ids: str = "I32") -> dict:
    return {
        "keys_and_values": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]},
        "tokens": {"dtype": ids, "shape": [tokens], "data_offsets": [size, size + 4 * tokens]},
    }


def test_what_another_model_or_another_computation_wrote_is_refused(written: Path) -> None:
    with pytest.raises(BadRequest, match=re.escape(f"{written}: keeps a prompt of another model")):
        PromptFile(written, "1" * 64, COMPUTED)
    with pytest.raises(BadRequest, match=r"was computed with 'numba, activations int8', and this run computes with 'other'"):
        PromptFile(written, MODEL, "other")


@pytest.mark.parametrize(
    "header",
    [
        tensors("BF16", [2, 4], 3, 16),
        tensors("F16", [2, 4], 2, 16),
        tensors("BF16", [8], 2, 16),
        tensors("BF16", [2, 4], 2, 16, "U32"),
        {**tensors("BF16", [2, 4], 2, 16), "more": {"dtype": "U8", "shape": [1], "data_offsets": [24, 25]}},
        {"tokens": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}},
    ],
    ids=["counts", "dtype", "axes", "ids", "three", "one"],
)
def test_other_tensors_are_refused_before_they_are_read(tmp_path: Path, header: dict) -> None:
    size = max(entry["data_offsets"][1] for entry in header.values())
    path = forged(tmp_path / "kept", header, bytes(size))
    with pytest.raises(BadCheckpoint, match="does not hold the tensors of a prompt cache"):
        PromptFile(path, MODEL, COMPUTED)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no such thing", bytes(100), (1 << 40).to_bytes(8, "little") + b"{}"])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kept").write_bytes(content)
    with pytest.raises(BadCheckpoint, match="kept: "):
        PromptFile(tmp_path / "kept", MODEL, COMPUTED)


def test_a_checkpoint_is_no_prompt_and_stays(tiny_llama: Path) -> None:
    file = next(tiny_llama.glob("*.safetensors"))
    before = file.read_bytes()
    with pytest.raises(BadCheckpoint, match="no prompt cache that this version wrote"):
        PromptFile(file, MODEL, COMPUTED)
    assert file.read_bytes() == before


def test_a_folder_and_a_pipe_are_no_places(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is a folder"):
        PromptFile(tmp_path, MODEL, COMPUTED)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequest, match="no regular file"):
        PromptFile(tmp_path / "pipe", MODEL, COMPUTED)


def test_a_header_that_claims_more_than_the_file_has_takes_no_memory(tmp_path: Path) -> None:
    size = 1 << 50
    path = forged(tmp_path / "kept", tensors("BF16", [1 << 40, 512], 1 << 40, size), b"")
    with pytest.raises(BadCheckpoint, match="truncated"):
        PromptFile(path, MODEL, COMPUTED)


def test_rows_of_another_width_are_refused(engine: Engine, tmp_path: Path) -> None:
    path = forged(tmp_path / "kept", tensors("BF16", [2, 4], 2, 16), bytes(24))
    with pytest.raises(BadCheckpoint, match=r"BF16 \[2, 4\] are no keys and values of this model"):
        PromptFile(path, MODEL, COMPUTED).read_into(engine)


@pytest.mark.parametrize("token", [-1, 1 << 30])
def test_tokens_that_the_model_lacks_are_refused(engine: Engine, written: Path, tmp_path: Path, token: int) -> None:
    header, data = parts(written)
    first, last = header["tokens"]["data_offsets"]
    ids = np.frombuffer(data[first:last], "<i4").copy()
    ids[7] = token
    header.pop("__metadata__")
    path = forged(tmp_path / "kept", header, data[:first] + ids.tobytes() + data[last:])
    with pytest.raises(BadCheckpoint, match="not in the model's vocabulary"):
        PromptFile(path, MODEL, COMPUTED).read_into(engine)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_keys_that_are_no_numbers_are_refused(engine: Engine, written: Path, tmp_path: Path, bits: int) -> None:
    header, data = parts(written)
    first, last = header["keys_and_values"]["data_offsets"]
    values = np.frombuffer(data[first:last], np.uint16).copy()
    values[1001] = bits
    header.pop("__metadata__")
    path = forged(tmp_path / "kept", header, data[:first] + values.tobytes() + data[last:])
    with pytest.raises(BadCheckpoint, match="no finite numbers"):
        PromptFile(path, MODEL, COMPUTED).read_into(engine)


def test_a_flipped_bit_is_found(engine: Engine, written: Path, tmp_path: Path) -> None:
    data = bytearray(written.read_bytes())
    with closing(SafetensorsFile(written)) as file:
        data[file.tensors["keys_and_values"].offset + 2002] ^= 1  # the last bit of a bfloat16
    (tmp_path / "kept").write_bytes(data)
    with pytest.raises(BadCheckpoint, match="not what was written"):
        PromptFile(tmp_path / "kept", MODEL, COMPUTED).read_into(engine)


# ---- which model ----------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    with open_checkpoint(path) as checkpoint:
        return sampled_digest(checkpoint, checkpoint.metadata().config)


def test_a_changed_tensor_or_setting_is_another_model(tiny_llama: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        (tmp_path / name).mkdir()
        for file in tiny_llama.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    same, trained, renamed = copy("same"), copy("trained"), copy("set")
    file = next(trained.glob("*.safetensors"))
    with closing(SafetensorsFile(file)) as opened:
        norm = opened.tensors["model.layers.1.input_layernorm.weight"]
    with file.open("r+b") as stream:  # one value of one small vector
        stream.seek(norm.offset + 2 * 17)
        stream.write(b"\x00\x40")
    config = json.loads((renamed / "config.json").read_text())
    (renamed / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert digest(same) == digest(tiny_llama)
    assert len({digest(path) for path in (same, trained, renamed)}) == 3
