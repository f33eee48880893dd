"""BLAKE3 against the values that its authors publish, and against its definition in plain Python."""

import threading

import numpy as np
import pytest

from numba_kernels.hashes.blake3 import CHUNK, GROUP_BYTES, Blake3
from numba_kernels.reference.blake3 import blake3

PUBLISHED = {  # BLAKE3-team/BLAKE3, test_vectors.json: the first 32 bytes of `hash`, of so many bytes 0, 1, … 250, 0, 1, …
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    63: "e9bc37a594daad83be9470df7f7b3798297c3d834ce80ba85d6e207627b7db7b",
    64: "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98",
    65: "de1e5fa0be70df6d2be8fffd0e99ceaa8eb6e8c93a63f2d8d1c30ecb6b263dee",
    1023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    2049: "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030",
    3073: "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3",
    8193: "bab6c09cb8ce8cf459261398d2e7aef35700bf488116ceb94a36d0f5f1b7bc3b",
    31744: "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}


def hashed(data: np.ndarray, piece: int | None = None) -> str:
    made = Blake3()
    for start in range(0, len(data), piece or max(len(data), 1)):
        made.update(data[start : start + (piece or len(data))])
    return made.hexdigest()


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_vectors(size: int) -> None:
    data = (np.arange(size) % 251).astype(np.uint8)
    assert blake3(data.tobytes()).hex() == hashed(data) == PUBLISHED[size]


@pytest.mark.parametrize("beyond", [-CHUNK - 1, -CHUNK, -1, 0, 1, CHUNK, 3 * CHUNK + 7])
@pytest.mark.parametrize("groups", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_hashes_around_whole_groups_are_the_definitions_in_whatever_pieces_they_come(groups: int, beyond: int) -> None:
    size = groups * GROUP_BYTES + beyond
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    expected = blake3(data.tobytes()).hex()
    for piece in (None, 1000, GROUP_BYTES, GROUP_BYTES + 1, 100_000):
        assert hashed(data, piece) == expected, piece


@pytest.mark.slow  # the definition in plain Python takes its time
def test_many_groups_are_joined_as_the_tree_says() -> None:
    """Of every number of groups up to 9: a wrong order of joining shows in one of them."""
    data = np.random.default_rng(5).integers(0, 256, 9 * GROUP_BYTES, np.uint8)
    one = Blake3()
    found = []
    for start in range(0, len(data), GROUP_BYTES):
        one.update(data[start : start + GROUP_BYTES])
        found.append(one.digest())
    again = Blake3()
    again.update(data[: 8 * GROUP_BYTES])
    assert again.digest() == found[7]
    assert found[8] == blake3(data.tobytes())
    assert len(set(found)) == 9


def test_any_array_is_hashed_by_its_bytes() -> None:
    values = np.random.default_rng(1).normal(size=(37, 129)).astype(np.float32)
    made = Blake3()
    made.update(values[:5])
    made.update(values[5:])
    assert made.digest() == blake3(values.tobytes()) == made.digest()


def test_hashes_of_several_threads_do_not_touch_each_other() -> None:
    data = np.random.default_rng(2).integers(0, 256, (4, 2 * GROUP_BYTES + 33), np.uint8)
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: hashed(data[i], 70_000)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: hashed(data[i]) for i in range(4)}
    assert len(set(found.values())) == 4
