"""The kernels' tests again on every other path that this machine can execute, and Arm's in an emulator."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from numba_kernels import simd

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OTHERS = [name for name in simd.executable_paths() if name != simd.path()]
QUICK = "test_vector and (mxfp4 or q8_0 or q4_k or q6_k) or test_groups and mxfp4 or rms_norm"
QUICK += " or prefill_then_decode and 64-8-1 or any_shape and 1"
QUICK += " or company and bf16 or test_any_shape or records_hold"
QUICK += " or test_mxfp4 or test_ggml or test_error_sums or published"


def run_tests(path: str, *options: str, guards: bool = False) -> None:
    files = ["test_simd.py", "test_cpu_linear.py", "test_cpu_rows.py", "test_cpu_attention.py", "test_cpu_latent.py"]
    files += ["test_cpu_bf16.py", "test_codec_twins.py", "test_codec_sums.py", "test_hashes.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "OSS_TOOLS_SIMD": path, "OSS_TOOLS_GUARDS": str(int(guards))}
    done = subprocess.run(
        [*command, *(str(HERE / f) for f in files)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("path", OTHERS)
def test_some_kernels_on_path(path):
    run_tests(path, "-k", QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS)
def test_all_kernels_on_path(path):
    run_tests(path)


@pytest.mark.parametrize("path", simd.executable_paths())
def test_some_kernels_between_guard_bytes(path):
    """Nothing is written beside an array, and nothing that was read there is used."""
    run_tests(path, "-k", f"({QUICK}) and not 1-thread", guards=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", simd.executable_paths())
def test_all_kernels_between_guard_bytes(path):
    run_tests(path, guards=True)


def arm_report(*wanted: str) -> dict[str, dict]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])}
    environment.pop("OSS_TOOLS_SIMD", None)
    done = subprocess.run(
        [sys.executable, str(HERE / "arm.py"), *wanted],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check_arm(report: dict[str, dict]) -> None:
    """The instructions that the path is for are there, and results are right where they could be computed."""
    for name, case in report.items():
        words = case["instructions"]
        if "int8" in name.split()[2:] and not name.startswith(("linear bf16", "linear f")):
            assert words["sdot"] >= 16, name
        if name.startswith(("linear mxfp4", "linear iq4_nl")):
            assert words["tbl"] >= 16, name
        if "f32" in name or name == "swiglu":
            assert words["fmla"] >= 16 or name.startswith("keys"), name
        if importlib.util.find_spec("unicorn"):
            assert case["error"] is not None
            assert case["error"] < 3e-6, name
            assert case["overruns"] == 0, name


def test_some_arm_kernels():
    report = arm_report(
        "quantize", "rms_norm", "linear mxfp4 int8", "linear q8_0 int8 one", "attention 20", "latent .* 40", "q8_0 blocks"
    )
    assert len(report) == 10
    check_arm(report)


@pytest.mark.slow
def test_all_arm_kernels():
    report = arm_report()
    assert len(report) > 50
    check_arm(report)
