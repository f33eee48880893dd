"""The whole way to a GPU without one: Numba compiles, assembles, loads and launches, a graph is captured and replayed, and a
driver that is none interprets the launches, late, and watches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda")
FOLDER = Path(__file__).parent.parent / "numba_kernels" / "cuda"
PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
import fake_driver
import numpy as np
from numba_kernels.cuda import device
from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampling
from oss_tools.measure.cuda_correctness import nearness

device.COPIED = 1 << 16
tokens = np.random.default_rng(0).integers(0, 768, 80).tolist()


def request(n, **sampling):
    return Request(tokens[:n], 3, Sampling(**sampling), stop_tokens=frozenset())


wanted = Engine.load({model!r}, activations="f32", context=160, threads=1).logits(tokens)
with Engine.load({model!r}, backend="cuda", context=160, prefix_budget=1 << 24) as engine:
    assert nearness(engine.logits(tokens), wanted)["mean_kld"] < 0.001  # a prompt
    sequence = engine.open(tokens, reuse=0)
    rows = [engine.prefill(sequence, tokens[:18]), *(engine.step([sequence], [t])[0].copy() for t in tokens[18:20])]
    assert nearness(np.array(rows), wanted[17:20])["mean_kld"] < 0.001  # steps
    greedy = [t.id for t in engine.generate(request(10))]
    sequence = engine.open(tokens[:10], room=8, reuse=0)
    first = int(engine.prefill(sequence, tokens[:10]).argmax())
    assert [first, *engine.backend.generate(sequence.cache, first, 10, 2)] == greedy  # without the host in between
    drawn = [[t.id for t in engine.generate(request(10, temperature=2.0, seed=seed))] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    rule = request(5, temperature=1.0, seed=1), request(30), request(10, temperature=2.0, seed=1)
    together = list(engine.generate_batch(list(rule)))  # batches, draws and greedy choices in one pass
    assert sorted(i for i, _ in together) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert engine.backend.ceilings()["read"] > 0
    assert engine.backend.facts()["device"] == "Fake GPU"
    assert engine.backend.device_memory()["used"] >= engine.backend.device_memory()["allocated"] > 0
fake_driver.check()
print("launches:", len(fake_driver.launches))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler, on Linux")
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists(), reason="has a real driver")
def test_on_a_driver_that_is_none(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    library, program = tmp_path / "libcuda.so.1", tmp_path / "program.py"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, FOLDER / "fake_driver.c", "-ldl"], check=True)
    program.write_text(PROGRAM.format(folder=str(FOLDER), model=str(tiny_gpt_oss)))
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "PYTHONPATH": paths,
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("launches: ")
    assert done.stderr == ""
