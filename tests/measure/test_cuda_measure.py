"""The run on hardware, without hardware: every part at the size of a toy on the emulated device, and how parts end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba_cuda")
sys.path.insert(0, str(Path(__file__).parent.parent / "numba_kernels" / "cuda"))

from emulated_device import EmulatedDevice

from numba_kernels.cuda.seam import cuda as target
from oss_tools.convert.synth import load_shape
from oss_tools.engine import cuda_backend, cuda_sampling
from oss_tools.errors import BadRequest, MissingPackage, NoRoom
from oss_tools.measure import cuda, cuda_correctness, cuda_kernels, cuda_speed
from oss_tools.measure.cuda_problems import Sizes
from oss_tools.measure.synthetic import SyntheticCheckpoint
from oss_tools.models import open_checkpoint

TOY = Sizes(
    bytes=4000, hidden=64, rows=(10,), experts=4, top=2, heads=(4, 2, 16), depths=(70,), tokens=5, formats=("mxfp4", "int8"),
    expert_formats=("mxfp4",),
)  # fmt: skip


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_backend, "open_device", EmulatedDevice)
    monkeypatch.setattr(cuda_sampling, "CHOOSERS", 2)


def all_of(findings: Iterator[dict[str, Any]]) -> dict[str, Any]:
    together: dict[str, Any] = {}
    for found in findings:
        together |= json.loads(json.dumps(found))
    return together


# ---- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("emulated")
def test_device() -> None:
    found = all_of(cuda_kernels.device_facts())
    assert found["name"] == "emulated"
    assert found["copy_bytes_per_second"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
def test_kernels() -> None:
    found = all_of(cuda_kernels.kernel_speeds(TOY))
    by_name = {kernel["name"]: kernel for kernel in found["kernels"]}
    assert by_name["matvec mxfp4 10 × 64"]["bytes"] == 10 * (32 + 2)
    assert by_name["experts' down mxfp4"]["bytes"] == 2 * 64 * (32 + 2)
    assert by_name["attention at 70"]["bytes"] == 2 * 2 * 2 * 16 * 70
    assert (
        by_name["5 tokens × mxfp4"]["operations_per_second"] == 2 * 10 * 64 * 5 * 4
    )  # four launches in the emulated second
    assert all(kernel["microseconds"] > 0 for kernel in found["kernels"])
    assert found["targets_on_an_h100"]["least_share_of_copy"]["wanted"] == 0.75


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
def test_embedded_model(tiny_gpt_oss: Path) -> None:
    found = all_of(cuda_correctness.embedded_model(tiny_gpt_oss, texts=("ab",), greedy=2))
    assert found["passed"]
    assert found["float32"]["greedy_same"] == found["float32"]["greedy_tokens"] == 2
    assert found["float32"]["largest_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
def test_shapes() -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_local_experts": 3, "vocab_size": 300, "num_hidden_layers": 2}
    found = all_of(cuda_correctness.random_shapes({"a": (small, "mxfp4")}, cuda_correctness.Lengths(18, 3, 2), seed=1))
    assert found["passed"], found
    assert found["cases"]["a"]["float32"]["largest_difference"] < 1e-4
    assert found["cases"]["a"]["greedy_same"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
def test_families() -> None:
    found = all_of(cuda_correctness.families(cuda_correctness.Lengths(5, 3, 2), ["llama-tiny"], seed=1))
    assert found["passed"], found
    assert list(found["cases"]) == ["llama-tiny"]
    assert not found["refused"]


@pytest.mark.usefixtures("emulated")
def test_what_the_kernels_refuse_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise BadRequest("head_dim is 8")

    monkeypatch.setattr(cuda_correctness, "compare_shape", refuse)
    found = all_of(cuda_correctness.families())
    assert found["refused"]["llama-tiny"] == "head_dim is 8"
    assert found["passed"]


def test_what_is_wrong_is_found() -> None:
    """Limits are limits: NaN and far-off predictions do not pass."""
    assert cuda_correctness.is_near({"mean_kld": 0.001, "same_top": 0.95})
    assert not cuda_correctness.is_near({"mean_kld": float("nan"), "same_top": 0.95})
    assert not cuda_correctness.is_near({"mean_kld": 0.001, "same_top": 0.5})
    assert cuda_correctness.same_beginning([1, 2, 3], [1, 5, 3]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
def test_speed() -> None:
    work = cuda_speed.Work(prompts=(3,), depths=(0, 4), generate=2)
    found = all_of(cuda_speed.speed(load_shape("gpt-oss-tiny"), work=work))
    assert [g["depth"] for g in found["generation"]] == [0, 4]
    assert found["generation"][0]["tokens_per_second"] == 2  # the emulated second for each round of two tokens
    assert found["generation"][1]["bytes_per_token"] > found["generation"][0]["bytes_per_token"] > 0
    assert found["prompts"][0]["tokens_per_second"] == 3
    assert found["device_memory"]["allocated"] > 0
    assert found["host_peak_bytes"] > 0


@pytest.mark.usefixtures("emulated")
def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmulatedDevice, "memory", lambda self: (20 << 30, 24 << 30))
    with pytest.raises(NoRoom, match=r"needs 6\d\.\d GB"):
        all_of(cuda_speed.speed("gpt-oss-120b"))


def test_bytes_of_the_cache() -> None:
    """Sliding layers look back at their window, the others at everything: 2 kB a position and layer."""

    class Engine:
        architecture = SyntheticCheckpoint(load_shape("gpt-oss-20b")).architecture

    assert cuda_speed.cache_bytes(Engine(), 4096) == 2048 * 12 * (128 + 4096)  # type: ignore[arg-type]


@pytest.mark.peers
def test_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from oss_tools.measure import cuda_peer

    work = cuda_speed.Work(prompts=(3,), depths=(0, 2), generate=2)
    found = all_of(cuda_peer.speed(load_shape("gpt-oss-tiny"), work, device="cpu"))
    assert [g["depth"] for g in found["generation"]] == [0, 2]
    assert found["prompts"][0]["tokens_per_second"] > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingPackage, match="cannot use this GPU"):
        all_of(cuda_peer.speed("gpt-oss-20b"))


def test_tests_of_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "test_cuda_kernels.py").write_text("def test_a():\n    pass\n\ndef test_b():\n    assert False\n")
    found = all_of(cuda_kernels.kernel_tests(tmp_path))
    assert found["counts"] == {"passed": 1, "failed": 1}
    assert not found["passed"]
    assert found["failed"][0].endswith("test_b")
    with pytest.raises(MissingPackage, match="in a checkout"):
        all_of(cuda_kernels.kernel_tests(tmp_path / "none"))


# ---- weights that are drawn when they are read ----------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["mxfp4", "mxfp4-q8"])
def test_synthetic_weights(recipe: str, tmp_path: Path) -> None:
    """The same as what `oss-tools synth` writes."""
    from oss_tools.convert.recipe import load_recipe
    from oss_tools.convert.synth import plan_synthesis, synthesize

    shape = replace(load_shape("gpt-oss-tiny"))
    checkpoint = SyntheticCheckpoint(shape, recipe, seed=3)
    path = tmp_path / ("m" if recipe == "mxfp4" else "m.gguf")
    synthesize(plan_synthesis(shape, checkpoint.container, load_recipe(recipe), seed=3), path)
    with open_checkpoint(path) as stored:
        assert stored.entries.keys() == checkpoint.entries.keys()
        for name, entry in stored.entries.items():
            a, b = stored.read_tensor(name), checkpoint.read_tensor(name)
            assert entry.format == checkpoint.entries[name].format
            assert all((a.planes[plane] == b.planes[plane]).all() for plane in a.planes), name


# ---- how parts end --------------------------------------------------------------------------------------------------


ENDINGS = {
    "good": ("done", ""), "wrong": ("wrong", ""), "too_large": ("skipped", "it needs 9 GB, 8 GB are free"),
    "bad": ("failed", "no such thing"), "broken": ("failed", "the process ended with status 1"),
    "slow": ("failed", "the time ran out"),
}  # fmt: skip
PROCESS = """
import sys
sys.path.insert(0, {folder!r})
from oss_tools.measure import cuda
sys.exit(cuda.serve(cuda.Part("toy_parts:" + {name!r}, {{}}, 0)))
"""


def part_process(name: str, seconds: float) -> dict[str, Any]:
    """As `cuda.in_process`, with a function of toy_parts."""
    program = PROCESS.format(folder=str(Path(__file__).parent), name=name)
    return cuda.in_process(name, seconds, [sys.executable, "-c", program])


def test_every_part_leaves_a_record(tmp_path: Path) -> None:
    """Whatever becomes of one, the others go on; what it found before is kept."""
    told: list[str] = []
    parts = {name: cuda.Part("", {}, 0) for name in ENDINGS} | {"long": cuda.Part("", {}, 1e6)}

    def run_part(name: str, seconds: float) -> dict[str, Any]:
        return part_process(name, 8 if name == "slow" else 120)

    records = {r["part"]: r for r in cuda.run(parts, tmp_path / "out", 1000, told.append, run_part)}
    assert {n: (r["status"], r.get("error", "")) for n, r in records.items() if n != "long"} == ENDINGS
    assert records["long"]["status"] == "skipped"
    assert "s were left, it needs" in records["long"]["error"]
    assert records["good"]["result"] == {"a": 1, "summary": "fine"}
    assert records["broken"]["result"] == records["slow"]["result"] == records["too_large"]["result"] == {"a": 1}
    assert "ZeroDivisionError: a defect" in records["broken"]["printed"]
    assert len(told) == len(parts)
    for name, record in records.items():
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text()) == record
        assert record["machine"]["cores"] > 0


def test_parts_can_be_loaded() -> None:
    """Their functions exist and take the arguments."""
    assert [part.findings() for part in cuda.PARTS.values()]


@pytest.mark.skipif(target.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "oss_tools.measure.cuda", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no NVIDIA driver can be used here" in done.stderr
    assert not (tmp_path / "out").exists()
    assert cuda.main(["--output", str(tmp_path / "out"), "--only", "device"]) == 3
    with pytest.raises(SystemExit) as raised:
        cuda.main(["--only", "nonsense"])
    assert raised.value.code == 2
