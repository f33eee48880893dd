"""Kernels at the published models' sizes, compiled without a GPU: their PTX, and the machine code it becomes."""

from __future__ import annotations

import pytest

from numba_kernels.cuda.catalogue import Example, examples
from numba_kernels.cuda.ptx import assemble, instructions
from numba_kernels.cuda.seam import ARCHITECTURES, SIMULATED

pytestmark = pytest.mark.skipif(SIMULATED, reason="needs PTX")
EXAMPLES = [] if SIMULATED else list(examples())
QUICK = [
    "matvec mxfp4 × int8", "matvec q8_0 × int8", "router of 128", "gate and up mxfp4 × int8", "down mxfp4 × int8",
    "attention bf16, window 128", "choice of a token", "matmul mxfp4 × 64 tokens", "experts' gate and up mxfp4",
    "attention of many tokens, window None",
]  # fmt: skip
HOPPER = [pytest.param(e, marks=() if e.name in QUICK else pytest.mark.slow, id=e.name) for e in EXAMPLES]
SHARED_LIMIT = 48 << 10  # bytes of a block, without asking for more


def check(example: Example, architecture: tuple[int, int]) -> None:
    text = example.kernel.ptx(architecture)
    found = instructions(text)
    assert ".local" not in text  # no thread's memory, whose traffic would go through the caches
    assert ".func" not in text  # all calls are taken in
    assert not [name for name in found if ".f64" in name]  # no double precision by accident
    assert not [name for name in example.contains if name not in found]
    resources = assemble(text, architecture)
    assert (resources.stack, resources.spills) == (0, 0)
    assert resources.shared <= SHARED_LIMIT
    assert resources.registers * example.kernel.threads <= 65536 // 2  # two blocks fit into a multiprocessor


@pytest.mark.parametrize("example", HOPPER)
def test_hopper(example: Example) -> None:
    check(example, (9, 0))


def test_quick_examples_exist() -> None:
    assert set(QUICK) <= {example.name for example in EXAMPLES}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != (9, 0)], ids=str)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_other_architectures(example: Example, architecture: tuple[int, int]) -> None:
    check(example, architecture)
