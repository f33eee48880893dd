"""gpt-oss's vocabulary for checkpoints without a tokenizer.json. tests/interop/test_harmony_openai.py proves it right."""

import gzip
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from oss_tools.checkpoints import Metadata
from oss_tools.engine import o200k
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint, MissingPackage

GPT_OSS = Metadata({"model_type": "gpt_oss", "vocab_size": o200k.VOCABULARY})


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """A package bpe_openai with these ranks."""
    (folder / "data").mkdir()
    (folder / "data" / "o200k_base.tiktoken.gz").write_bytes(content)
    spec = ModuleSpec("bpe_openai", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(o200k, "find_spec", lambda name: spec)


def test_it_belongs_to_gpt_oss_only() -> None:
    assert o200k.belongs_to(GPT_OSS.config)
    assert not o200k.belongs_to({"model_type": "gpt_oss", "vocab_size": 512})
    assert not o200k.belongs_to({"model_type": "llama", "vocab_size": o200k.VOCABULARY})


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(o200k, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install '\.\[harmony\]'"):
        Text(GPT_OSS)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"IQ== 0\n"), gzip.compress(b"IQ== 0\n" * 1000)[:-9]],
    ids=["none", "short", "cut"],
)
def test_other_ranks_are_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, content)
    with pytest.raises(BadCheckpoint, match="install"):
        o200k.ranks_file()


def test_an_endless_file_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, gzip.compress(bytes(200 << 20), 1))
    with pytest.raises(BadCheckpoint, match="sha256"):
        o200k.ranks_file()


def test_halves_are_the_last_merge() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"bc": 257, b"abc": 258, b"aab": 259, b"aabc": 260}
    assert o200k.halves(b"abc", ranks) == (b"ab", b"c")
    assert o200k.halves(b"aabc", ranks) == (b"a", b"abc")
