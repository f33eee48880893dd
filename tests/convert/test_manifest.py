"""Manifests: hashes as the documentation says them, and manifests of older versions."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from numba_kernels.reference.blake3 import blake3
from oss_tools.convert.manifest import BLAKE3, SHA256, Manifest, TensorHash, manifest_path
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.formats import get_format
from oss_tools.models import open_checkpoint
from tests.convert.helpers import convert

Synthetic = Callable[..., Path]


@pytest.mark.parametrize(("algorithm", "function"), [(BLAKE3, blake3), (SHA256, lambda b: hashlib.sha256(b).digest())])
def test_a_hash_is_of_the_planes_in_whatever_pieces_they_come(algorithm: str, function: Callable[[bytes], bytes]) -> None:
    values = np.random.default_rng(3).normal(size=(40, 64)).astype(np.float32)
    tensor = get_format("mxfp4").quantize(values)
    found = TensorHash(tensor.format, (40, 64), algorithm)
    for start, stop in ((0, 1), (1, 33), (33, 40)):
        found.update(tensor.rows(slice(start, stop)))
    planes = b"".join(name.encode() + function(tensor.planes[name].tobytes()) for name in ("blocks", "scales"))
    assert found.result() == f"{algorithm}:{function(b'mxfp4 [40, 64]' + planes).hex()}"


def as_schema_1(path: Path, checkpoint: Path) -> None:
    """Rewrites a manifest of a conversion that moved every tensor as the program wrote it before there was BLAKE3."""
    raw = json.loads(path.read_text())
    with open_checkpoint(checkpoint) as made:
        for tensor in raw["tensors"]:
            found = TensorHash(made.entries[tensor["name"]].format, tuple(tensor["shape"]), SHA256)
            count, rows, _ = made.entries[tensor["name"]].spec.matrices
            for matrix in range(count):
                found.update(made.read(tensor["name"], matrix, 0, rows))
            tensor["sha256"] = tensor["source_sha256"] = found.result().removeprefix("sha256:")
            del tensor["hash"], tensor["source_hash"]
    path.write_text(json.dumps(raw | {"schema": 1}))


def test_a_manifest_of_schema_1_is_read_and_still_proves(synthetic: Synthetic, tmp_path: Path) -> None:
    source, target = synthetic("llama-tiny"), tmp_path / "out"
    made = convert(source, target, "hf")
    as_schema_1(manifest_path(target), target)
    old = Manifest.read(manifest_path(target))
    assert [t.name for t in old.tensors] == [t.name for t in made.tensors]
    assert all(t.hash.startswith("sha256:") and t.proven_equal for t in old.tensors)
    assert convert(source, target, "hf", resume=True).tensors == old.tensors  # reads the source, and compares sha256
    raw = json.loads(manifest_path(target).read_text())
    raw["tensors"][3]["source_sha256"] = "0" * 64
    manifest_path(target).write_text(json.dumps(raw))
    with pytest.raises(BadRecipe, match=raw["tensors"][3]["name"]):
        convert(source, target, "hf", resume=True)


def test_a_manifest_of_a_later_schema_is_refused(synthetic: Synthetic, tmp_path: Path) -> None:
    convert(synthetic("llama-tiny"), tmp_path / "out", "hf")
    path = manifest_path(tmp_path / "out")
    raw = json.loads(path.read_text())
    assert raw["schema"] == 2
    for damage in ({"schema": 3}, {"tensors": [{k: v for k, v in raw["tensors"][0].items() if k != "hash"}]}):
        path.write_text(json.dumps(raw | damage))
        with pytest.raises(BadCheckpoint, match="not a manifest"):
            Manifest.read(path)
