"""Mutated folders: whatever the damage, a folder opens or is refused in one line, at once and without much memory."""

import copy
import json
import random
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.checkpoints import Metadata
from oss_tools.errors import OssToolsError
from oss_tools.models.checkpoint import open_checkpoint
from tests.checkpoints.small_models import EXPERTS, GPT_OSS, LINEARS, LLAMA, save

MEMORY = 64 << 20  # bytes
SECONDS = 5  # of the processor: others that use it do not count
VALUES = [
    *(None, True, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 2**70, 10**400, 1e308, float("inf"), float("nan"), 0.5),
    *("", "x", "F32", "U8", "int8", "../../etc/passwd", "\ud800", "a\nb", "x" * 5000, "compressed-tensors", "mxfp4", "yarn"),
    *([], {}, [1], [[]], [0, 0], [2**62, 2**62], {"a": 1}, [None] * 3, [{"x": []}], ["sliding_attention"], [1] * 40),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """One valid folder of each kind."""
    root = tmp_path_factory.mktemp("valid")
    metadata = Metadata(LLAMA.hf_config(), {"model": {"vocab": {"a": 0}}}, {"eos_token": "a"}, {"top_k": 1}, "{{ x }}")
    metadata.files["README.md"] = b"---\nlicense: mit\ntags: [a, b]\n---\n"
    save(GPT_OSS, "hf", root / "mxfp4", dict.fromkeys(EXPERTS, "mxfp4"))
    save(LLAMA, "hf", root / "int8", dict.fromkeys(LINEARS, "int8_g32"), metadata, shard_size=150_000)
    save(GPT_OSS, "original", root / "original", dict.fromkeys(EXPERTS, "mxfp4"), shard_size=40_000)
    return sorted(root.iterdir())


def edit_json(content: object, rng: random.Random) -> object:
    """The content with one node, anywhere in it, replaced, removed, renamed or doubled."""
    content = copy.deepcopy(content)
    node, parent, key = content, None, None
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.75):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    if parent is None:
        return rng.choice(VALUES)
    action = rng.randrange(5)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[str(rng.choice(VALUES))] = parent.pop(key)
    elif action == 2 and isinstance(node, int):
        parent[key] = node + rng.choice([-1, 1, 32, 1 << 40])
    elif action == 3 and isinstance(parent, dict):
        parent[f"{key}{rng.choice(['_scale', '_blocks', '_packed', '.blocks', 'x'])}"] = node
    else:
        parent[key] = rng.choice(VALUES)
    return content


def edited(path: Path, rng: random.Random) -> bytes:
    """A file's bytes after an edit of its JSON."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        length = int.from_bytes(data[:8], "little")
        text = json.dumps(edit_json(json.loads(data[8 : 8 + length]), rng)).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]
    if path.suffix == ".json":
        return json.dumps(edit_json(json.loads(data), rng)).encode()
    return data[: rng.randrange(len(data) + 1)]


def flipped(path: Path, rng: random.Random) -> bytes:
    """A file's bytes, some of them changed, cut out or doubled; mostly near the start, where the structure is."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(min(len(data), rng.choice([16, 2000, len(data) + 1])) or 1)
        action = rng.randrange(4)
        if action == 0:
            del data[place:]
        elif action == 1:
            del data[place : place + rng.randrange(1, 9)]
        elif action == 2:
            data[place:place] = data[place : place + rng.randrange(1, 9)]
        elif place < len(data):
            data[place] = rng.randrange(256)
    return bytes(data)


def open_and_read_all(folder: Path) -> None:
    """Opens a folder, reads all that it holds, or is refused."""
    try:
        with open_checkpoint(folder) as checkpoint:
            for name, entry in checkpoint.entries.items():
                matrices, rows, _ = entry.spec.matrices
                checkpoint.read(name, 0, 0, 1)
                checkpoint.read(name, matrices - 1, rows - 1, rows)
            checkpoint.metadata()
            for container in checkpoint.architecture.containers:
                checkpoint.architecture.container_config(container)
    except OssToolsError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 2000
        message.encode()


def damage_one(folders: list[Path], root: Path, mutate: Callable[[Path, random.Random], bytes], seed: int) -> None:
    """Damages one file of one valid folder and opens the result."""
    rng = random.Random(seed)
    source = rng.choice(folders)
    folder = root / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    victim = rng.choice(sorted(source.iterdir()))
    (folder / victim.name).unlink()
    (folder / victim.name).write_bytes(mutate(victim, rng))
    tracemalloc.start()
    started = time.process_time()
    try:
        open_and_read_all(folder)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < SECONDS


MUTATIONS = pytest.mark.parametrize("mutate", [edited, flipped])


@MUTATIONS
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**48))
def test_damaged_folders_open_or_are_refused(folders, tmp_path_factory, mutate, seed: int) -> None:
    damage_one(folders, tmp_path_factory.getbasetemp(), mutate, seed)


@pytest.mark.slow
@MUTATIONS
@settings(deadline=None, max_examples=1000)
@given(seed=st.integers(0, 2**48))
def test_many_damaged_folders_open_or_are_refused(folders, tmp_path_factory, mutate, seed: int) -> None:
    damage_one(folders, tmp_path_factory.getbasetemp(), mutate, seed)
