"""Packs: divergences within the stated bound of the exact ones, runs without the base, and files that are refused."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.compare.models import make, recipe_called
from oss_tools.compare.packs import DRAWN, KEPT, PackedPassage, against, pack_passage, read_pack
from oss_tools.compare.predictions import Passage
from oss_tools.measure.fidelity import joined, measure_rows
from oss_tools.report.comparison import read
from oss_tools.resources import resource

TINY = resource("tiny/checkpoint")
FEW = ("--suites", "math", "--limit", 4, "--chunks", 3, "--repeat", 0, "-t", 1, "-q")


def oss_tools(*arguments: Any, status: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == status, done.output
    return done.output


class Rows:
    """An engine whose logits are given, a few rows at a time."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def each_logits(self, tokens: list[int], start: int = 0):
        for at in range(start, len(tokens), 7):
            yield self.logits[at : min(at + 7, len(tokens))]


def distributions(seed: int, n: int, vocabulary: int, spread: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a base and of a candidate that differs from it by noise."""
    random = np.random.default_rng(seed)
    base = random.normal(0, spread, (n, vocabulary)).astype(np.float32)
    return base, base + random.normal(0, noise, base.shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("spread", "noise"), [(1.0, 0.3), (3.0, 0.3), (3.0, 1.0), (0.1, 0.5)])
def test_divergences_are_within_the_stated_bound_of_the_exact_ones(seed: int, spread: float, noise: float) -> None:
    """Flat tails too, of which hardly anything is kept."""
    n, vocabulary = 120, 6000
    base, candidate = distributions(seed, n, vocabulary, spread, noise)
    chunk = tuple(np.random.default_rng(seed).integers(0, vocabulary, n).tolist())
    passage = Passage("text", (chunk,))
    packed, own = pack_passage(Rows(base), passage)
    found, bound = against(packed, Rows(candidate), lambda done, total: None)
    rows = slice(n // 2, n - 1)
    exact = measure_rows(base[rows], candidate[rows], np.array(chunk[n // 2 + 1 :]))
    assert abs(joined(found).kld.mean() - exact.kld.mean()) <= bound
    assert bound < 0.15 * exact.kld.mean() + 1e-6
    assert joined(found).nll == pytest.approx(exact.nll)
    assert joined(found).base_nll == pytest.approx(exact.base_nll, abs=1e-5)
    assert (joined(found).same_top == exact.same_top).all()
    assert joined(own).nll == pytest.approx(exact.base_nll, abs=1e-5)


def test_a_model_has_no_divergence_from_its_own_pack() -> None:
    base, _ = distributions(1, 40, 3000, 2.0, 0.0)
    packed, _ = pack_passage(Rows(base), Passage("text", (tuple(range(40)),)))
    found, bound = against(packed, Rows(base), lambda done, total: None)
    assert joined(found).kld.max() < 1e-6
    assert bound < 1e-6


def test_a_vocabulary_that_is_smaller_than_what_is_kept() -> None:
    base, candidate = distributions(2, 30, KEPT // 2, 1.0, 0.5)
    chunk = tuple(range(30))
    packed, _ = pack_passage(Rows(base), Passage("text", (chunk,)))
    found, bound = against(packed, Rows(candidate), lambda done, total: None)
    exact = measure_rows(base[15:29], candidate[15:29], np.array(chunk[16:]))
    assert joined(found).kld == pytest.approx(exact.kld, abs=1e-5 + 30 * bound)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the embedded model, and three quantizations of it."""
    folder = tmp_path_factory.mktemp("packs")
    oss_tools("compare", "tiny", "--write-pack", folder / "tiny.pack", *FEW, "-o", folder / "base")
    for name in ("q8_0", "mxfp4", "q4_0"):
        make(TINY, recipe_called(name), folder)
    return folder


@pytest.mark.slow
def test_three_formats_within_the_bound_without_the_base(packs: Path, tmp_path: Path) -> None:
    names = ("q8_0", "mxfp4", "q4_0")
    candidates = [next(path for path in packs.glob(f"{name}*") if "manifest" not in path.name) for name in names]
    shown = oss_tools("compare", *candidates, "--pack", packs / "tiny.pack", *FEW, "-o", tmp_path / "packed")
    assert "held against a pack" in shown
    oss_tools("compare", "tiny", *candidates, *FEW, "-o", tmp_path / "exact")
    packed, exact = (read(tmp_path / name / "comparison.json") for name in ("packed", "exact"))
    assert packed.base == "tiny"
    assert packed.candidates[0].fidelity == exact.candidates[0].fidelity, "the base's own perplexity"
    for ours, theirs in zip(packed.candidates[1:], exact.candidates[1:], strict=True):
        for f, g in zip(ours.fidelity, theirs.fidelity, strict=True):
            assert f.kld is not None
            assert g.kld is not None
            assert f.kld_bound is not None
            assert not f.exact
            assert abs(f.kld.mean - g.kld.mean) <= f.kld_bound
            assert f.kld_bound < 0.05 * g.kld.mean
            assert f.same_top == g.same_top
            assert f.perplexity == g.perplexity
        assert ours.tasks == theirs.tasks, "paired with the base's answers"
        assert ours.weight_error is None
    positions = sum(f.positions for f in packed.candidates[1].fidelity)
    assert (packs / "tiny.pack").stat().st_size < positions * 8 * (KEPT + DRAWN + 2) + 100_000
    oss_tools("report", tmp_path / "packed" / "comparison.json", "--html", tmp_path / "page.html")


def test_other_questions_are_refused(packs: Path, tmp_path: Path) -> None:
    other = [*FEW[:2], "--limit", 5, *FEW[4:]]
    said = oss_tools("compare", "tiny", "--pack", packs / "tiny.pack", *other, "-o", tmp_path, status=2)
    assert "made with another limit" in said
    health = ["--suites", "health", *FEW[2:]]
    said = oss_tools("compare", "tiny", "--pack", packs / "tiny.pack", *health, "-o", tmp_path, status=2)
    assert "no answers to health_smoke" in said


def test_another_model_is_refused(packs: Path, tmp_path: Path, tiny_llama: Path) -> None:
    said = oss_tools("compare", tiny_llama, "--pack", packs / "tiny.pack", "--suites", "", "-q", "-o", tmp_path, status=2)
    assert "another tokenizer" in said


def test_odd_calls_are_refused(packs: Path, tmp_path: Path) -> None:
    for arguments in (
        ["tiny", "--pack", packs / "tiny.pack", "--base", "tiny"],
        ["--pack", packs / "tiny.pack"],
        ["tiny", "tiny", "--write-pack", tmp_path / "x.pack"],
        ["tiny", "--write-pack", tmp_path / "x.pack", "--formats", "q8_0"],
        ["http://127.0.0.1:9/v1#m", "--write-pack", tmp_path / "x.pack"],
    ):
        oss_tools("compare", *arguments, *FEW, "-o", tmp_path, status=2)
    assert not (tmp_path / "x.pack").exists()


def sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def parts_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[8:16])
    return json.loads(data[16 : 16 + length]), data[16 + length : -32]


def with_header(header: dict[str, Any], content: bytes) -> bytes:
    text = json.dumps(header).encode()
    return sealed(b"OSSPACK1" + struct.pack("<Q", len(text)) + text + content)


HOSTILE = {
    "cut off": lambda header, content: with_header(header, content)[:-40],
    "a byte changed": lambda header, content: with_header(header, content)[:-50] + b"x" + with_header(header, content)[-49:],
    "shorter arrays": lambda header, content: with_header(header, content[:-4]),
    "longer arrays": lambda header, content: with_header(header, content + bytes(4)),
    "a header beyond the file": lambda header, content: sealed(b"OSSPACK1" + struct.pack("<Q", 1 << 60) + content),
    "no JSON": lambda header, content: sealed(b"OSSPACK1" + struct.pack("<Q", 3) + b"{,}" + content),
    "huge passages": lambda header, content: with_header(
        {**header, "passages": [{"name": "text", "chunks": 1 << 40, "size": 1 << 40}]}, content
    ),
    "negative sizes": lambda header, content: with_header(
        {**header, "passages": [{"name": "t", "chunks": -1, "size": 9}]}, content
    ),
    "ids beyond the vocabulary": lambda header, content: with_header(header, b"\xff\xff\xff\x7f" + content[4:]),
    "no log-probabilities": lambda header, content: with_header(header, content[:-4] + struct.pack("<f", 5.0)),
    "NaN": lambda header, content: with_header(header, content[:-4] + struct.pack("<f", float("nan"))),
    "no vocabulary": lambda header, content: with_header(
        {**header, "about": {**header["about"], "vocabulary": "x"}}, content
    ),
    "another version": lambda header, content: with_header({**header, "schema": 99}, content),
    "nothing": lambda header, content: b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_in_a_line(packs: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "hostile.pack"
    file.write_bytes(HOSTILE[kind](*parts_of(packs / "tiny.pack")))
    said = oss_tools("compare", "tiny", "--pack", file, *FEW, "-o", tmp_path / "out", status=2)
    assert len(said.strip().splitlines()) == 1
    assert str(file) in said


def test_a_pack_comes_back_as_it_was_written(packs: Path) -> None:
    pack = read_pack(packs / "tiny.pack")
    assert pack.name == "tiny"
    assert {p.passage.name for p in pack.passages} == {"text", "prompts"}
    assert all(isinstance(p, PackedPassage) and len(p.kept) == len(p.came) for p in pack.passages)
