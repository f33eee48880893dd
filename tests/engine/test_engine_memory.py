"""Memory: what loading takes beside the weights, what a limit on it does, and what the figures beforehand say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from oss_tools.cli._options import parse_size
from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.backend import Options
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.errors import NoRoom
from oss_tools.fit.memory import Tokenizer, Use
from oss_tools.fit.memory import memory as estimate
from oss_tools.machine import memory
from oss_tools.models import open_checkpoint

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
LOADING = """
import gc, re, sys
from pathlib import Path
from oss_tools.engine.engine import Engine

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

like_it, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
Engine.load(like_it, threads=threads, context=512).close()  # libraries and compiled code are no part of it
gc.collect()
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
engine = Engine.load(model, threads=threads, context=512)
print(status("VmHWM") - before, sum(p.nbytes for p in engine.backend.weights.packed))
"""
LOW = 560  # megabytes of address space: enough to begin, not to load
ONE_THREAD = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's library takes address space for every core that there is
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's figures of a process")


def make(folder: Path, shape: str, layers: int, recipe: str, container: str, name: str = "model", **changes: int) -> Path:
    model = load_shape(shape).with_layers(layers)
    model = replace(model, config=model.config | {"vocab_size": 32000} | changes)
    return synthesize(plan_synthesis(model, container, load_recipe(recipe)), folder / f"{name}.{container}", threads=2)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "layers", "recipe", "container"),
    [("llama-3.2-1b-like", 6, "q4_1", "gguf"), ("llama-3.2-1b-like", 2, "bf16", "hf"), ("gpt-oss-20b", 1, "mxfp4", "hf")],
)
def test_loading_takes_a_tenth_more_than_the_weights(
    shape: str, layers: int, recipe: str, container: str, threads: int, tmp_path: Path
) -> None:
    like_it = make(tmp_path, shape, 1, recipe, container, "small", **SMALL)
    model = make(tmp_path, shape, layers, recipe, container)
    command = [sys.executable, "-c", LOADING, str(like_it), str(model), str(threads)]
    taken, weights = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert weights > 250e6
    assert taken < 1.1 * weights


def generate(model: Path, megabytes: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Generates in a process whose address space is limited."""
    import resource

    command = [sys.executable, "-m", "oss_tools", "generate", str(model), "The", "--raw", "-n", "4", "-t", "2", *options]
    limit = (megabytes << 20, resource.RLIM_INFINITY)
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env=ONE_THREAD,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )


@linux
@pytest.mark.parametrize(
    ("layers", "changes"),
    [(2, SMALL | {"vocab_size": 4000}), pytest.param(8, {}, marks=pytest.mark.slow)],
    ids=["3 MB", "600 MB"],
)
def test_a_limit_near_the_figure_is_enough_and_one_below_is_refused(
    layers: int, changes: dict[str, int], tmp_path: Path
) -> None:
    """20b in 16 GB, in small. What is missing is taken from the program's own line."""
    model = make(tmp_path, "llama-3.2-1b-like", layers, "q8_0", "gguf", **changes)
    first = generate(model, 1 << 20, "-q")  # compiles what is not in the cache yet, which takes memory of its own
    assert first.returncode == 0, first.stderr
    low = generate(model, LOW, "--context", "512")
    assert low.returncode == 3
    assert len(low.stderr.splitlines()) == 1
    line = re.search(r"needs ([\d.]+ .B) of memory .* ([\d.]+ .B) are free", low.stderr)
    needed, free = map(parse_size, line.groups())  # type: ignore[union-attr]
    missing = (needed - free) / (1 << 20)
    assert generate(model, LOW + int(missing) - 150, "--context", "512").returncode == 3
    enough = generate(model, LOW + int(missing) + 150, "--context", "512")
    assert enough.returncode == 0, enough.stderr
    assert "generated 4 tokens" in enough.stderr


def peak(model: Path | str, context: int, limit: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "oss_tools.measure.peak", str(model), "--threads", "2"]
    options = ["--context", str(context), "--limit", str(limit)]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, env=ONE_THREAD)


@linux
def test_the_peak_is_measured_under_a_limit(tiny_gpt_oss: Path) -> None:
    done = peak(tiny_gpt_oss, 600, 4)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["limit_bytes"] == 4 << 30
    assert 50e6 < record["peak_bytes"] < 1e9
    refused = peak(tiny_gpt_oss, 600, 0.5)
    assert refused.returncode == 1
    assert re.search(r"[\d.]+ MB of memory are too little for this model: at least [\d.]+ MB", refused.stderr)


@linux
@pytest.mark.slow
@pytest.mark.skipif("GPT_OSS_20B" not in os.environ, reason="GPT_OSS_20B names no checkpoint of 20b's shape")
def test_20b_runs_in_16_gib(tmp_path: Path) -> None:
    """`oss-tools synth gpt-oss-20b 20b.gguf --recipe mxfp4-q8` makes the checkpoint, of 12 GB."""
    done = peak(os.environ["GPT_OSS_20B"], 4096, 16)
    assert done.returncode == 0, done.stderr
    assert 12e9 < json.loads(done.stdout)["peak_bytes"] < 13e9


def test_the_refusal_says_what_would_fit(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(context=2048)
    with open_checkpoint(tiny_llama) as checkpoint:
        weights = NumbaBackend.weight_bytes(checkpoint, options)
        position = NumbaBackend.position_bytes(checkpoint.architecture, options)
    monkeypatch.setattr(memory, "available_memory", lambda: memory.WORK_BYTES + weights + 700 * position)
    with pytest.raises(NoRoom, match=r"[kMG]B are free; --context 700 would fit$"):
        Engine.load(tiny_llama, context=2048)
    Engine.load(tiny_llama, context=700, threads=1).close()


def test_the_pages_of_a_pass_are_counted_once() -> None:
    """For gpt-oss-20b: 12 layers with 128 positions before 512 tokens, for all sequences together."""
    shape = load_shape("gpt-oss-20b")
    plain = plan_synthesis(replace(shape, config=shape.config | {"sliding_window": 1 << 20}), "hf")
    sliding = plan_synthesis(shape, "hf")
    for batch in (1, 4):
        use = Use(4096, batch)
        without, taken = (estimate(s.architecture, s.entries, Tokenizer(), use) for s in (plain, sliding))
        pages = 12 * 704 * 2 * 8 * 64 * 2
        assert pages <= taken.activations - without.activations <= 1.5 * pages  # or whole huge pages
        assert without.cache - taken.cache == batch * 12 * (4096 - 128) * 2 * 8 * 64 * 2
