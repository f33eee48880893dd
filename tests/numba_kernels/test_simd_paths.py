"""The kernels' tests again on every other path that this machine can execute, and Arm's in an emulator."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from numba_kernels import simd

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OTHERS = [name for name in simd.executable_paths() if name != simd.path()]
ANOTHER = OTHERS and ["avx2" if "avx2" in OTHERS else OTHERS[-1]]  # for the fast tests: of another width, where there is one
QUICK = "threads and (test_vector and int8 and (mxfp4 or q8_0 or q4_k) or test_groups and mxfp4 or rms_norm"
QUICK += " or prefill_then_decode and 64-8-1 or test_several_sequences or records_hold)"
QUICK += " or test_mxfp4 or test_ggml or test_error_sums or published_vectors"


def run_tests(path: str, *options: str, guards: bool = False) -> None:
    files = ["test_simd.py", "test_cpu_linear.py", "test_cpu_rows.py", "test_cpu_attention.py", "test_cpu_latent.py"]
    files += ["test_cpu_experts.py", "test_cpu_attention_bytes.py"]
    files += ["test_cpu_bf16.py", "test_codec_twins.py", "test_codec_sums.py", "test_hashes.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "OSS_TOOLS_SIMD": path, "OSS_TOOLS_GUARDS": str(int(guards))}
    done = subprocess.run(
        [*command, *(str(HERE / f) for f in files)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3500
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("path", ANOTHER)
def test_some_kernels_on_path(path):
    run_tests(path, "-k", QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", OTHERS)
def test_all_kernels_on_path(path):
    run_tests(path)


def test_some_kernels_between_guard_bytes():
    """Nothing is written beside an array, and nothing that was read there is used."""
    run_tests(simd.path(), "-k", QUICK, guards=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", simd.executable_paths())
def test_all_kernels_between_guard_bytes(path):
    run_tests(path, guards=True)


def arm_report(path: str, *wanted: str) -> dict[str, dict]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])}
    environment.pop("OSS_TOOLS_SIMD", None)
    done = subprocess.run(
        [sys.executable, str(HERE / "arm.py"), path, *wanted],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check_arm(path: str, report: dict[str, dict]) -> None:
    """The instructions that the path is for are there, and results are right where they could be computed."""
    emulated = (sys.platform == "linux" and shutil.which("qemu-aarch64")) or (
        path == "neon" and importlib.util.find_spec("unicorn")
    )
    for name, case in report.items():
        words, kind, several = case["instructions"], name.split(), name.startswith("shapes") or name.endswith("many")
        if "int8" in kind[2:] and not name.startswith(("linear bf16", "linear f")):
            assert words["sdot"] >= 16, name
            assert (words["smmla"] >= 16 and words["sdot"] < 32) == (path == "i8mm" and several), name
        if kind[1:] == ["bf16", "bf16"] and path == "i8mm":
            assert words["bfdot"] >= 8, name
            assert words["bfmmla"] >= 32, name
        if name.startswith(("linear mxfp4", "linear iq4_nl")):
            assert words["tbl"] >= 16, name
        if "f32" in name or name == "swiglu":
            assert words["fmla"] >= 16 or name.startswith("keys"), name
        if emulated:
            assert case["error"] is not None
            assert case["error"] < (5e-4 if name.endswith("i16") else 3e-6), name  # what is rounded to 16 bits
            assert case["overruns"] == 0, name
            if name.endswith(" many"):  # the first of several tokens has the bits that it has alone
                assert case["first"] == report[name.replace(" many", " one")]["first"], name


def same_bits(one: dict[str, dict], other: dict[str, dict]) -> None:
    """What is summed in integers is the same on both paths; bfdot rounds in its own way."""
    for name, case in one.items():
        if "int8" in name or "int8_g16" in name:
            assert case.get("result") == other[name].get("result"), name


@pytest.mark.slow
def test_some_arm_kernels():
    report = arm_report(
        "neon", "quantize", "rms_norm", "linear mxfp4 int8", "attention 20", "latent .* 40", "q8_0 blocks",
    )  # fmt: skip
    assert len(report) == 9
    check_arm("neon", report)


@pytest.mark.slow
def test_some_arm_kernels_with_matrix_instructions():
    report = arm_report("i8mm", "shapes mxfp4 int8$", "shapes bf16")
    assert len(report) == 2
    check_arm("i8mm", report)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_arm_kernels():
    reports = {path: arm_report(path) for path in ("neon", "i8mm")}
    for path, report in reports.items():
        assert len(report) > 80
        check_arm(path, report)
    same_bits(reports["i8mm"], reports["neon"])
