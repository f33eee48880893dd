"""What `compare` says of a GGUF pair against the statistics of llama.cpp's `perplexity --kl-divergence` on the same pair.

The tool itself comes with no package. Its logits do: here they go through its definitions, as `tools/perplexity/perplexity.cpp`
states them, down to the 16 bits in which its file keeps the base's log-probabilities.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.harness.data import read_jsonl
from oss_tools.models import open_checkpoint
from oss_tools.report.comparison import from_json
from oss_tools.resources import resource
from tests.interop.peers import smollm2

pytestmark = [pytest.mark.peers, pytest.mark.slow]
CHUNK, CHUNKS = 512, 8
LEAST = -16.0  # log-probabilities below this count for nothing
WITHIN, PERCENTILES_WITHIN = 0.02, 0.04
PERCENTILES = (90.0, 95.0, 99.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """SmolLM2-135M in F16 and Q4_0, both from the published Q4_1."""
    folder = tmp_path_factory.mktemp("pair")
    with open_checkpoint(smollm2()) as source:
        for name in ("f16", "q4_0"):
            run(make_plan(source, "gguf", load_recipe(name)), folder / f"{name}.gguf", Options(verify=False))
    return [folder / "f16.gguf", folder / "q4_0.gguf"]


def chunks_of_the_text(path: Path) -> list[tuple[int, ...]]:
    """The prose of the text suite in llama.cpp's tokens."""
    import llama_cpp

    prose = "\n\n".join(doc["text"] for doc in read_jsonl(resource("evals/text/smoke.jsonl")))
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    tokens = model.tokenize(prose.encode(), add_bos=True, special=True)
    first = (model.token_bos(),) if tokens[0] == model.token_bos() else ()
    pieces = [tuple(tokens[at : at + CHUNK]) for at in range(0, CHUNK * CHUNKS, CHUNK)]
    return [first + piece[len(first) :] for piece in pieces]


def logits_of_second_halves(path: Path, chunks: list[tuple[int, ...]]) -> Iterator[np.ndarray]:
    """Of each chunk, read with nothing before it: float32 [positions, vocabulary]."""
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=CHUNK, n_batch=CHUNK, logits_all=True, verbose=False, n_threads=2)
    for chunk in chunks:
        model.reset()
        model.eval(chunk)
        yield model.scores[CHUNK // 2 : CHUNK - 1].copy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    most = logits.max(-1, keepdims=True)
    return logits - most - np.log(np.exp(logits - most).sum(-1, keepdims=True, dtype=np.float64))


def as_stored(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities as the tool's file has them: 16 bits between the largest logit and what is 16 below it."""
    most = logits.max(-1, keepdims=True)
    least = np.maximum(logits.min(-1, keepdims=True), most + LEAST)
    scale = (most - least) / 65535
    codes = np.rint((np.maximum(logits, least) - least) / scale)
    return scale * codes + least - most - np.log(np.exp(logits - most).sum(-1, keepdims=True, dtype=np.float64))


def llama_cpp_statistics(pair: list[Path], chunks: list[tuple[int, ...]]) -> dict[str, float]:
    columns: list[list[np.ndarray]] = []
    both = zip(*(logits_of_second_halves(path, chunks) for path in pair), strict=True)
    for chunk, (base, other) in zip(chunks, both, strict=True):
        p, q = as_stored(base), log_softmax(other)
        came, rows = np.array(chunk[CHUNK // 2 + 1 :]), np.arange(len(base))
        kld = np.where(p > LEAST, np.exp(p) * (p - q), 0.0).sum(-1)
        columns.append([kld, p[rows, came], q[rows, came], p.argmax(-1) == q.argmax(-1)])
    kld, log_p, log_q, same = (np.concatenate(column) for column in zip(*columns, strict=True))
    delta_p = np.exp(log_q) - np.exp(log_p)
    return {
        "PPL(base)": np.exp(-log_p.mean()),
        "PPL(Q)": np.exp(-log_q.mean()),
        "PPL(Q)/PPL(base)": np.exp(log_p.mean() - log_q.mean()),
        "mean KLD": kld.mean(),
        "median KLD": np.median(kld),
        **{f"{q:g} % KLD": np.percentile(kld, q) for q in PERCENTILES},
        "same top": same.mean(),
        "mean Δp": delta_p.mean(),
        "RMS Δp": np.sqrt(np.square(delta_p).mean()),
        "positions": len(kld),
    }


def our_statistics(record: dict[str, Any], chunks: list[tuple[int, ...]]) -> dict[str, float]:
    base, other = (candidate.fidelity[0] for candidate in from_json(record).candidates)
    assert other.sha256 == hashlib.sha256(repr(tuple(chunks)).encode()).hexdigest(), "the tokens are not the same"
    assert other.kld
    assert other.same_top
    assert other.delta_p
    assert other.log_perplexity_ratio
    return {
        "PPL(base)": base.perplexity.value,
        "PPL(Q)": other.perplexity.value,
        "PPL(Q)/PPL(base)": np.exp(other.log_perplexity_ratio.value),
        "mean KLD": other.kld.mean,
        "median KLD": other.kld.median,
        **{f"{q:g} % KLD": getattr(other.kld, f"p{q:g}") for q in PERCENTILES},
        "same top": other.same_top.value,
        "mean Δp": other.delta_p.mean,
        "RMS Δp": other.delta_p.rms,
        "positions": other.positions,
    }


def test_figures_are_llama_cpps(pair: list[Path], tmp_path: Path) -> None:
    chunks = chunks_of_the_text(pair[0])
    theirs = llama_cpp_statistics(pair, chunks)
    arguments = ["--suites", "", "--chunks", str(CHUNKS), "--repeat", "0", "-q", "--json"]
    done = CliRunner().invoke(app, ["compare", *map(str, pair), "-o", str(tmp_path), *arguments])
    assert done.exit_code == 0, done.output
    ours = our_statistics(json.loads(done.stdout), chunks)
    print(f"\n{'':18} {'llama.cpp':>10} {'compare':>10}")
    print("\n".join(f"{name:18} {theirs[name]:10.5f} {ours[name]:10.5f}" for name in theirs))
    for name, value in theirs.items():
        within = PERCENTILES_WITHIN if "%" in name or "median" in name else WITHIN
        scale = theirs["RMS Δp"] if name == "mean Δp" else value  # a mean that is near 0
        assert abs(ours[name] - value) <= within * scale, name
