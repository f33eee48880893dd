"""Kernels as machine code: compiled once, kept, and compiled again where what was kept is not whole."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from carry_out import run

from numba_kernels.cuda import driver, machine_code
from numba_kernels.cuda.blocks import LAYOUTS
from numba_kernels.cuda.noise import CODES, SCALES, draw_matrix, noise_kernel
from numba_kernels.cuda.packing import packed_rows
from numba_kernels.cuda.planned import PlannedDevice
from numba_kernels.cuda.prefill import round_kernel
from numba_kernels.cuda.seam import SIMULATED, Kernel

pytestmark = pytest.mark.skipif(SIMULATED, reason="needs PTX")
HOPPER, AMPERE = (9, 0), (8, 0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_a_kernel_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = round_kernel(64, norm=False)
    made = machine_code.machine_code(kernel, HOPPER)
    assert made.code.startswith(b"\x7fELF")
    assert made.entry.encode() in made.code
    assert made.waits
    assert [path.parent.name for path in cache.glob("*/*")] == ["cuda-sm_90"]

    def compile_again(kernel: Kernel, architecture: tuple[int, int]) -> machine_code.MachineCode:
        raise AssertionError(f"{kernel.name} is compiled again for {architecture}")

    monkeypatch.setattr(machine_code, "compiled", compile_again)
    assert machine_code.machine_code(round_kernel(64, norm=False), HOPPER) == made
    with pytest.raises(AssertionError, match="compiled again"):
        machine_code.machine_code(round_kernel(96, norm=False), HOPPER)
    with pytest.raises(AssertionError, match="compiled again"):
        machine_code.machine_code(kernel, AMPERE)


def test_older_cards_do_not_wait(cache: Path) -> None:
    assert not machine_code.machine_code(round_kernel(64, norm=False), AMPERE).waits


@pytest.mark.parametrize("damage", [b"", b"{}\n", b'{"entry": "a", "waits": true, "sha256": "0"}\ncode', b"\xff\xfe"])
def test_what_is_damaged_is_made_again(damage: bytes, cache: Path) -> None:
    kernel = round_kernel(64, norm=False)
    machine_code.machine_code(kernel, HOPPER)
    (place,) = cache.glob("*/*")
    place.write_bytes(damage or place.read_bytes()[:-1])
    made = machine_code.machine_code(kernel, HOPPER)
    assert made.entry.encode() in made.code
    assert place.read_bytes().endswith(made.code)


def test_a_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "cuda-sm_90").write_text("a file, where the folder would be")
    assert machine_code.machine_code(round_kernel(64, norm=False), HOPPER).code


def test_numpy_without_row_stack() -> None:
    """NumPy 2.5 has none, and Numba's CUDA target asks for it while it compiles."""
    program = (
        "import numpy as np\nvars(np).pop('row_stack', None)\nassert not hasattr(np, 'row_stack')\n"
        "from numba_kernels.cuda.prefill import round_kernel\nprint(len(round_kernel(64, norm=True).ptx((9, 0))) > 1000)"
    )
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "True\n", done.stderr[-2000:]


# ---- noise ----------------------------------------------------------------------------------------------------------


def test_words_of_noise() -> None:
    """Bits where there may be some, none elsewhere; others for another seed."""
    drawn = []
    for seed in (1, 2):
        out = np.full(1000, 77, np.uint32)
        run(noise_kernel(), 2, out, 990, seed, 0x00FF00F0, 0x12000000)
        assert (out[990:] == 77).all()
        assert np.bitwise_or.reduce(out[:990]) == 0x12FF00F0
        assert np.bitwise_and.reduce(out[:990]) == 0x12000000
        drawn.append(out[:990])
    assert (drawn[0] != drawn[1]).mean() > 0.9


@pytest.mark.parametrize("format", LAYOUTS)
def test_noise_is_of_moderate_numbers(format: str) -> None:
    """Whatever the random bits: no NaN, no infinity, nothing that grows from layer to layer."""
    layout = LAYOUTS[format]
    for bits in (0, 0xFFFFFFFF):
        keep, put = CODES[format]
        word = np.array([bits & keep | put], np.uint32)
        if layout.is_float:
            if format == "bf16":
                values = (word.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = word.view({"f16": np.float16, "f32": np.float32}[format])
            assert (abs(values.astype(np.float64)) < 0.04).all()
            assert (values != 0).all()
        else:
            keep, put = SCALES[layout.scale]
            scale = np.array([bits & keep | put], np.uint32)
            if layout.scale == "e8m0":
                scales = 2.0 ** (scale.view(np.uint8).astype(np.float64) - 127)
            elif layout.scale == "f16":
                scales = scale.view(np.float16).astype(np.float64)
            else:
                scales = (scale.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            assert ((scales > 1e-5) & (scales < 0.01)).all()


# ---- a device that runs nothing -------------------------------------------------------------------------------------


def test_planned_kernels() -> None:
    device = PlannedDevice(HOPPER)
    codes, scales = packed_rows("q8_0", {"blocks": np.zeros((4, 68), np.uint8)}, 64)
    held = device.array(codes.reshape(-1)), device.zeros(scales.size, scales.dtype)
    draw_matrix(device, "q8_0", *held, 1)
    assert list(device.kernels) == [noise_kernel().name]
    assert not device.download(held[0]).any()
    assert len(held[0][2:5]) == 3


# ---- the context ----------------------------------------------------------------------------------------------------


def test_every_thread_gets_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another too, as the number of a thread that has ended is given to the next."""
    calls: list[int] = []
    monkeypatch.setattr(driver.cu, "cuDevicePrimaryCtxRetain", lambda number: (0, 7))
    monkeypatch.setattr(driver.cu, "cuCtxSetCurrent", lambda handle: (calls.append(handle), (0,))[1])
    context = driver.Context(driver.Gpu(0, "none", HOPPER, 1, "none"))
    for _ in range(3):
        thread = threading.Thread(target=lambda: (context.use(), context.use()))
        thread.start()
        thread.join()
    assert calls == [7, 7, 7]
