"""The run-ready file: what is written comes back in every format and family, and a file that was tampered with is one line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels import simd
from oss_tools.checkpoints import Contents, Metadata, StoredTensor, open_container
from oss_tools.checkpoints.ready import ReadyReader
from oss_tools.checkpoints.ready_layout import lay_out
from oss_tools.checkpoints.ready_preamble import HASH_BYTES, PREAMBLE
from oss_tools.checkpoints.ready_table import read_table, table_bytes
from oss_tools.checkpoints.ready_writer import ReadyWriter
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL, recipe_of_format
from oss_tools.convert.synth import Shape, plan_synthesis, synthesize
from oss_tools.errors import BadCheckpoint, BadRecipe, OssToolsError, VerificationFailed
from oss_tools.formats import QTensor, all_formats, get_format
from oss_tools.models import open_checkpoint
from oss_tools.verify import verify
from tests.convert.helpers import contents, convert
from tests.models.small_families import CONFIGS

CONFIG = {"model_type": "a"}


def random_rows(name: str, rows: int, columns: int, seed: int) -> QTensor:
    """Rows of any bytes at all."""
    rng, form = np.random.default_rng(seed), get_format(name)
    planes = {
        plane: rng.integers(0, 256, (rows, kind.nbytes), np.uint8).view(kind.dtype)
        for plane, kind in form.planes(columns).items()
    }
    if name == "mxfp4":
        planes["scales"][::3, 0] = 0
        planes["scales"][1::3, -1] = 1
    return QTensor(form, (rows, columns), planes)


def written(folder: Path, tensors: list[StoredTensor], stacks: list, rows: dict[str, QTensor], step: int = 7) -> Path:
    """A file of these tensors, written in pieces of so many rows, last ones first."""
    folder.mkdir(exist_ok=True)
    writer = ReadyWriter(folder, Contents("a", tensors, Metadata(CONFIG, files={"LICENSE": b"free"}), {"stacks": stacks}))
    try:
        for name, tensor in rows.items():
            for start in reversed(range(0, tensor.shape[0], step)):
                writer.write(name, start, tensor.rows(slice(start, start + step)))
        return writer.finish()[0]
    finally:
        writer.close()


def assert_planes(found: QTensor, wanted: QTensor) -> None:
    assert found.format == wanted.format
    for plane, array in wanted.planes.items():
        assert found.planes[plane].tobytes() == np.ascontiguousarray(array).tobytes()


# ---- what is written comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(all_formats()))
def test_any_bytes_of_any_format_come_back(name: str, tmp_path: Path) -> None:
    """Stacks of three, rows that take turns, experts beside each other, and tensors of no stack."""
    shapes = {"q": (33, 256), "k": (10, 256), "v": (5, 256), "gate": (3, 19, 256), "up": (3, 19, 256), "down": (3, 7, 512)}
    shapes |= {"alone": (9, 256), "strange": (2, 3, 4, 256)}
    tensors = [StoredTensor(n, get_format(name), shape) for n, shape in shapes.items()]
    rows = {t.name: random_rows(name, t.rows, t.shape[-1], seed) for seed, t in enumerate(tensors)}
    stacks = [[(["q", "k", "v"], False)], [(["gate", "up"], True), (["down"], False)], [(["missing"], False)]]
    with ReadyReader(written(tmp_path, tensors, stacks, rows)) as reader:
        assert list(reader.tensors.values()) == tensors
        for tensor in tensors:
            columns = tensor.shape[-1]
            assert_planes(reader.read(tensor.name, 0, tensor.rows, columns), rows[tensor.name])
            for start, stop in ((0, 1), (3, 5), (tensor.rows - 1, tensor.rows), (2, 2)):
                found = reader.read(tensor.name, start, stop, columns)
                assert_planes(found, rows[tensor.name].rows(slice(start, stop)))
            with pytest.raises(IndexError):
                reader.read(tensor.name, 0, tensor.rows + 1, columns)
        assert reader.damage() == []
        assert reader.metadata(CONFIG).files == {"LICENSE": b"free"}


def test_experts_lie_beside_each_other_on_pages_of_their_own(tmp_path: Path) -> None:
    shapes = {"gate": (4, 48, 256), "up": (4, 48, 256), "down": (4, 256, 64), "dense": (48, 256)}
    tensors = [StoredTensor(name, get_format("q8_0"), shape) for name, shape in shapes.items()]
    rows = {t.name: random_rows("q8_0", t.rows, t.shape[-1], 1) for t in tensors}
    stacks = [[(["dense"], False)], [(["gate", "up"], True), (["down"], False)]]
    with ReadyReader(written(tmp_path, tensors, stacks, rows)) as reader:
        dense, experts = reader.layout.records
        assert (dense.count, experts.count) == (1, 4)
        assert experts.nbytes == sum(stack.shape.nbytes for stack in experts.stacks)
        assert dense.offset % 4096 == experts.offset % 4096 == experts.stride % 4096 == 0
        down = reader.panels(["down"], False)
        assert down is not None
        memory = np.empty(down.shape[1:], np.uint8)
        down.read(3, memory)
        assert np.array_equal(memory, down.mapped()[3])
        assert not down.mapped().flags.writeable
        assert reader.panels(["up", "gate"], True) is None
        assert reader.panels(["gate"], False) is None


def test_formats_that_differ_part_what_they_can(tmp_path: Path) -> None:
    """Rows one under another get stacks of their own; rows that take turns cannot, and are kept as they are."""
    formats = {"q": "q8_0", "k": "q4_0", "v": "iq4_xs", "gate": "q8_0", "up": "q4_0", "down": "mxfp4"}
    tensors = [
        StoredTensor(name, get_format(f), (2, 8, 256) if name in ("gate", "up", "down") else (8, 256))
        for name, f in formats.items()
    ]
    rows = {t.name: random_rows(t.format.name, t.rows, 256, 1) for t in tensors}
    stacks = [[(["q", "k", "v"], False)], [(["gate", "up"], True), (["down"], False)]]
    with ReadyReader(written(tmp_path, tensors, stacks, rows)) as reader:
        assert set(reader.layout.panels) == {"q", "k", "down"}
        for tensor in tensors:
            assert_planes(reader.read(tensor.name, 0, tensor.rows, 256), rows[tensor.name])


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, str]], Path]:
    """A folder of random weights of a small configuration."""
    made: dict[tuple[str, str], Path] = {}

    def make(kind: tuple[str, str]) -> Path:
        if kind not in made:
            shape = Shape("-".join(kind), CONFIGS[kind], "bf16", "")
            made[kind] = synthesize(plan_synthesis(shape, "hf"), tmp_path_factory.mktemp("family") / "model")
        return made[kind]

    return make


@pytest.mark.parametrize("kind", CONFIGS, ids="-".join)
def test_every_family_comes_back_byte_for_byte(family: Any, kind: tuple[str, str], tmp_path: Path) -> None:
    source = family(kind)
    convert(source, tmp_path / "a.ready", "ready")
    convert(tmp_path / "a.ready", tmp_path / "back", "hf")
    assert contents(tmp_path / "back") == contents(source)
    with open_checkpoint(source) as a, open_checkpoint(tmp_path / "a.ready") as b:
        assert b.architecture.computation() == a.architecture.computation()
        assert verify(a, b).equal


@pytest.mark.parametrize("format", ["mxfp4", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "f32", "f16"])
def test_gguf_comes_back_byte_for_byte(tiny_llama: Path, format: str, tmp_path: Path) -> None:
    convert(tiny_llama, tmp_path / "a.gguf", "gguf", recipe_of_format(format))
    convert(tmp_path / "a.gguf", tmp_path / "a.ready", "ready")
    (tmp_path / "b").mkdir()
    convert(tmp_path / "a.ready", tmp_path / "b" / "a.gguf", "gguf")
    with open_container(tmp_path / "a.gguf") as a, open_container(tmp_path / "b" / "a.gguf") as b:
        assert a.tensors == b.tensors
        for name, tensor in a.tensors.items():
            rows = [r.read(name, 0, tensor.rows, tensor.shape[-1]) for r in (a, b)]
            assert_planes(rows[1], rows[0])
        lost = {key for key in a.raw_config if key not in b.raw_config}
    assert not lost


@pytest.mark.parametrize("format", ["int8", "int8_g32", "int8_g128", "fp8_e4m3", "fp8_block", "nvfp4"])
def test_folders_of_other_formats_come_back_byte_for_byte(tiny_llama: Path, format: str, tmp_path: Path) -> None:
    convert(tiny_llama, tmp_path / "a", "hf", recipe_of_format(format).falling_back(("bf16",)))
    convert(tmp_path / "a", tmp_path / "a.ready", "ready")
    convert(tmp_path / "a.ready", tmp_path / "b", "hf")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


OTHERS = [path for path in simd.executable_paths() if path != simd.path()]


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS)
def test_a_file_made_for_another_processor_is_the_same_model(tiny_gpt_oss: Path, path: str, tmp_path: Path) -> None:
    """Kernels with other panels take its weights as from any other file."""
    source = tmp_path / "q8.gguf"
    convert(tiny_gpt_oss, source, "gguf", recipe_of_format("q8_0"))
    convert(source, tmp_path / "a.ready", "ready")
    program = """
import sys, numpy as np
from pathlib import Path
from oss_tools.engine.engine import Engine
logits = [Engine.load(Path(p), threads=1, context=64).logits([1, 2, 3, 4, 5]) for p in sys.argv[1:]]
assert np.array_equal(*logits)
"""
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "a.ready")]
    done = subprocess.run(command, env={**os.environ, "OSS_TOOLS_SIMD": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_names_say_what_is_to_be_made(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"a ready checkpoint is a \.ready file"):
        convert(tiny_llama, tmp_path / "a", "ready")
    with pytest.raises(BadRecipe, match="a hf checkpoint is a folder"):
        convert(tiny_llama, tmp_path / "a.ready", "hf")


# ---- hostile and damaged files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tiny_gpt_oss: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "a.ready"
    convert(tiny_gpt_oss, path, "ready")
    return path.read_bytes()


def table_of(content: bytes) -> dict[str, Any]:
    return json.loads(content[PREAMBLE.size : PREAMBLE.size + PREAMBLE.unpack_from(content)[4]])


def with_table(content: bytes, table: Any) -> bytes:
    """The file with another table, whose hash and size are right."""
    text = table if isinstance(table, bytes) else table_bytes(table)
    magic, version, order, size, _, _, hashes = PREAMBLE.unpack_from(content)
    head = PREAMBLE.pack(magic, version, order, size, len(text), hashlib.sha256(text).digest(), hashes)
    return head + text + content[len(head) + len(text) :]


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint) as caught, open_checkpoint(path) as checkpoint:
        checkpoint.metadata()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TENSORS, RECORDS, TEXTS = "tensors", "records", "texts"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(lanes=1 << 40), "lanes are"),
        (lambda t: t.update(lanes=True), "lanes are"),
        (lambda t: t.update(biased=1), "biased"),
        (lambda t: t.pop(TEXTS), "keys"),
        (lambda t: t.update(more=1), "keys"),
        (lambda t: t.update(tensors={}), "no list"),
        (lambda t: t[TENSORS].append(t[TENSORS][0]), "there twice"),
        (lambda t: t[TENSORS][0].append(1), "no \\[name"),
        (lambda t: t[TENSORS].__setitem__(0, ["a\nb", "f32", [1]]), "unprintable"),
        (lambda t: t[TENSORS][0].__setitem__(1, "q9"), "no number format named 'q9'"),
        (lambda t: t[TENSORS][0].__setitem__(2, [1 << 62, 1 << 62]), "cannot lie in a file"),
        (lambda t: t[TENSORS][0].__setitem__(2, []), "the shape"),
        (lambda t: t[TENSORS][0].__setitem__(2, [4, -64]), "the shape"),
        (lambda t: t[TENSORS][0].__setitem__(2, [4, True]), "the shape"),
        (lambda t: t[TENSORS][0].__setitem__(2, [1] * 99), "the shape"),
        (lambda t: t[TENSORS][0].__setitem__(2, [7, 3]), "its tensors make"),
        (lambda t: t[RECORDS].append(t[RECORDS][0]), "in another one too"),
        (lambda t: t[RECORDS].append([[["model.norm.weight"], False]]), "no panels"),
        (lambda t: t[RECORDS].append([]), "a record is empty"),
        (lambda t: t[RECORDS].append([[[], False]]), "no \\[\\[names"),
        (lambda t: t[RECORDS].append([[["nothing"], False]]), "no tensor of the file"),
        (lambda t: t[RECORDS][0].append(t[RECORDS].pop(4)[0]), "different numbers of matrices"),
        (lambda t: t[RECORDS][1][0].__setitem__(1, 7), "no \\[\\[names"),
        (lambda t: t[TEXTS].pop(0), "texts are no list"),
        (lambda t: t[TEXTS].reverse(), "the first texts are not"),
        (lambda t: t[TEXTS].append(["../a", 1]), "bad name"),
        (lambda t: t[TEXTS].append(["x", -1]), "bad name or size"),
        (lambda t: t[TEXTS].append(["x", 1 << 60]), "bad name or size"),
        (lambda t: t[TEXTS][0].__setitem__(1, 1 << 30), "bad name or size"),
    ],
)
def test_a_table_that_lies_is_one_line(sound: bytes, change: Any, words: str, tmp_path: Path) -> None:
    table = table_of(sound)
    change(table)
    assert re.search(words, refusal(tmp_path / "a.ready", with_table(sound, table)))


def test_a_table_that_is_none_is_one_line(sound: bytes, tmp_path: Path) -> None:
    for text in (b"", b"[]", b"{", b"[" * 100_000, b'{"a":1,"a":1}', b"\xff\xfe", b'{"lanes":' + b"9" * 5000 + b"}"):
        refusal(tmp_path / "a.ready", with_table(sound, text))


def test_many_experts_are_counted_before_they_are_looked_at(sound: bytes, tmp_path: Path) -> None:
    table = table_of(sound)
    table[TENSORS] = [["a", "f16", [1 << 21, 1, 1]]]
    table[RECORDS] = [[[["a"], False]]]
    assert "records and planes, more than" in refusal(tmp_path / "a.ready", with_table(sound, table))


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 60, 127, 128, 1000, 5000, -1, -4096, -5000])
def test_a_file_that_is_cut_off_is_one_line(sound: bytes, keep: int, tmp_path: Path) -> None:
    refusal(tmp_path / "a.ready", sound[:keep])


def test_a_file_that_grew_is_one_line(sound: bytes, tmp_path: Path) -> None:
    assert "is the copy complete" in refusal(tmp_path / "a.ready", sound + b"\0")


def test_a_file_that_was_never_finished_is_one_line(sound: bytes, tmp_path: Path) -> None:
    assert "never finished" in refusal(tmp_path / "a.ready", sound[:64] + bytes(32) + sound[96:])


def test_other_files_under_the_name_are_named(tmp_path: Path) -> None:
    assert "zip archive" in refusal(tmp_path / "a.ready", b"PK\x03\x04" + bytes(400))
    assert "Git LFS" in refusal(tmp_path / "b.ready", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "empty file" in refusal(tmp_path / "c.ready", b"")


def read_or_refused(path: Path) -> str:
    """What is said against a file; "" if it can be read. Any other error is a crash."""
    try:
        with open_checkpoint(path) as checkpoint:
            checkpoint.metadata()
            for name, entry in checkpoint.entries.items():
                checkpoint.read(name, 0, 0, min(entry.spec.matrices[1], 3))
    except OssToolsError as error:
        return str(error)
    return ""


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_changed_byte_of_the_header_is_one_line(sound: bytes, tmp_path_factory: Any, data: st.DataObject) -> None:
    """But for those that nobody reads."""
    end = PREAMBLE.size + PREAMBLE.unpack_from(sound)[4] + 1000
    at, value = data.draw(st.integers(0, end)), data.draw(st.integers(1, 255))
    content = bytearray(sound)
    content[at] ^= value
    path = tmp_path_factory.mktemp("fuzz") / "a.ready"
    path.write_bytes(content)
    unread = range(PREAMBLE.size - 32, PREAMBLE.size)
    table_end = PREAMBLE.size + PREAMBLE.unpack_from(sound)[4]
    said = read_or_refused(path)
    assert said or at in unread or at >= table_end
    assert "\n" not in said


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_changed_byte_of_a_table_with_its_hash_is_no_crash(
    sound: bytes, tmp_path_factory: Any, data: st.DataObject
) -> None:
    size = PREAMBLE.unpack_from(sound)[4]
    text = bytearray(sound[PREAMBLE.size : PREAMBLE.size + size])
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, size - 1))] = data.draw(st.sampled_from(b'0123456789[]{}",:-ea \x00\xff'))
    path = tmp_path_factory.mktemp("fuzz") / "a.ready"
    path.write_bytes(with_table(sound, bytes(text)))
    assert "\n" not in read_or_refused(path)


def test_metadata_of_wrong_kinds_is_one_line(tmp_path: Path, tiny_llama: Path) -> None:
    convert(tiny_llama, tmp_path / "a.ready", "ready")
    sound = (tmp_path / "a.ready").read_bytes()
    with ReadyReader(tmp_path / "a.ready") as reader:
        offset, nbytes = reader.layout.texts["metadata"]
        found = json.loads(sound[offset : offset + nbytes])
    for change in (
        {"tokenizer": []},
        {"tokenizer_config": None},
        {"chat_template": 1},
        {"chat_templates": {"a": 1}},
        {"general": "x"},
        {"generation_config": []},
    ):
        text = json.dumps({**found, **change}, separators=(",", ":")).encode()
        assert len(text) <= nbytes
        content = sound[:offset] + text.ljust(nbytes) + sound[offset + nbytes :]
        assert "its metadata" in refusal(tmp_path / "b.ready", content)


def test_damage_is_found_and_named(sound: bytes, tmp_path: Path, tiny_gpt_oss: Path) -> None:
    path = tmp_path / "a.ready"
    path.write_bytes(sound)
    with ReadyReader(path) as reader:
        record = next(r for r in reader.layout.records if r.count > 1)
    content = bytearray(sound)
    content[record.offset + record.stride + 5] ^= 1
    path.write_bytes(content)
    with ReadyReader(path) as reader:
        (named,) = reader.damage()
    assert named.endswith("[1]")
    damaged = pytest.raises(VerificationFailed, match=r"damaged: .*experts.* \[1\] is not what was written")
    with open_checkpoint(tiny_gpt_oss) as a, open_checkpoint(path) as b, damaged:
        verify(a, b)


def test_places_never_overlap(sound: bytes, tmp_path: Path) -> None:
    layout = read_table(table_of(sound), PREAMBLE.unpack_from(sound)[4], len(sound))
    pieces = sorted((piece.offset, piece.nbytes) for piece in layout.pieces())
    assert all(a + n <= b for (a, n), (b, _) in pairwise(pieces))
    assert pieces[0][0] >= layout.hashes + HASH_BYTES * len(pieces)
    assert pieces[-1][0] + pieces[-1][1] + 4096 <= layout.size == len(sound)
    assert lay_out(8, False, [], [], [("config", 0), ("metadata", 0)], 10).size % 4096 == 0


def test_a_second_writer_takes_up_only_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    tensors = [StoredTensor("a", get_format("q8_0"), (20, 64))]
    rows = {"a": random_rows("q8_0", 20, 64, 3)}
    path = written(tmp_path, tensors, [[(["a"], False)]], rows)
    first = path.read_bytes()
    assert written(tmp_path, tensors, [[(["a"], False)]], rows).read_bytes() == first
    with pytest.raises(BadCheckpoint, match="left by another conversion"):
        ReadyWriter(tmp_path, Contents("a", tensors, Metadata({"model_type": "b"}), {"stacks": []}))


def test_a_dry_run_and_shapes_take_it(tiny_llama: Path, tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama) as checkpoint:
        plan = make_plan(checkpoint, "ready", KEEP_ALL)
        assert plan.lossless
        run(plan, tmp_path / "a.ready", Options(verify=True))
    assert {p.name for p in tmp_path.iterdir()} == {"a.ready", "a.ready.manifest.json"}
