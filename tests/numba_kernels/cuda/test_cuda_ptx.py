"""Kernels at the published models' sizes, compiled without a GPU: their PTX, and the machine code it becomes."""

from __future__ import annotations

import re

import pytest

from numba_kernels.cuda.attend import attend_kernel
from numba_kernels.cuda.attention import Attention
from numba_kernels.cuda.attention_many import attend_many_kernel
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.catalogue import Example, examples
from numba_kernels.cuda.matvec import STORE, matvec_kernel
from numba_kernels.cuda.ptx import assemble, instructions
from numba_kernels.cuda.seam import ARCHITECTURES, DEPENDENT, SHARED, SIMULATED, NoKernel

pytestmark = pytest.mark.skipif(SIMULATED, reason="needs PTX")
EXAMPLES = [] if SIMULATED else list(examples())
QUICK = [
    "matvec mxfp4 × int8", "matvec q8_0 × int8", "router of 128", "gate and up mxfp4 × int8", "down mxfp4 × int8",
    "attention bf16, window 128", "choice of a token", "matmul mxfp4 × 64 tokens", "experts' gate and up mxfp4",
    "attention of many tokens, window None", "attention ahead, window None", "attention by tiles, window None",
    "attention by tiles, window 128", "gate and up of 128", "down of 128", "router of 128, logits",
]  # fmt: skip
HOPPER = [pytest.param(e, marks=() if e.name in QUICK else pytest.mark.slow, id=e.name) for e in EXAMPLES]


def assert_waits(text: str) -> None:
    """A launch may begin while the one before it still runs: until it waits for that, it touches nothing but weights, which alone
    are read past the first cache, and what launches wrote that have ended, which alone is read by relaxed loads."""
    touching = re.compile(
        r"(@!?%p\d+\s+)?(ld\.(volatile\.)?global(?!\.nc|\.L1::no_allocate)|st\.(volatile\.)?global|atom|red)\b"
    )
    assert not [line for line in before_waiting(text) if touching.match(line)]


def before_waiting(text: str) -> list[str]:
    """The instructions that a thread may come to before it waits, in whatever order the text has them."""
    lines = [line.split("//")[0].strip() for line in text.splitlines()]
    labels = {line[:-1]: n for n, line in enumerate(lines) if re.fullmatch(r"\$\w+:", line)}
    assert lines.count("griddepcontrol.wait;") == 1
    seen: set[int] = set()
    waiting, ways = False, [next(n for n, line in enumerate(lines) if ".entry" in line)]
    while ways:
        n = ways.pop()
        while n < len(lines) and n not in seen:
            if lines[n] == "griddepcontrol.wait;":
                waiting = True
                break
            seen.add(n)
            if jump := re.match(r"(@!?%p\d+\s+)?bra(?:\.uni)?\s+(\$\w+);", lines[n]):
                ways.append(labels[jump[2]])
            if lines[n] == "ret;" or (jump and not jump[1]):
                break
            n += 1
    assert waiting
    return [lines[n] for n in sorted(seen)]


def test_what_comes_before_the_wait_is_found() -> None:
    """By the ways that a thread may take: what stands above is not before, and what stands below may be."""
    begin, rest = ".entry f()\n{\nbra.uni $B;\n$A:\nld.global.u32 %r1, [%rd1];\nret;\n", "bra.uni $A;\n}"
    assert_waits(begin + "$B:\ngriddepcontrol.wait;\n" + rest)
    with pytest.raises(AssertionError):
        assert_waits(begin + "$B:\n@%p1 bra $A;\ngriddepcontrol.wait;\n" + rest)


def check(example: Example, architecture: tuple[int, int]) -> None:
    text = example.kernel.ptx(architecture)
    found = instructions(text)
    assert ".local" not in text  # no thread's memory, whose traffic would go through the caches
    assert ".func" not in text  # all calls are taken in
    if architecture >= DEPENDENT:
        assert_waits(text)
    else:
        assert "griddepcontrol" not in text
    assert not [name for name in found if ".f64" in name]  # no double precision by accident
    assert not [name for name in example.contains if name not in found]
    resources = assemble(text, architecture)
    resident = example.kernel.resident(architecture)
    assert resources.spills <= (
        256 if resident else 0
    )  # with a bound: what is used before and after a loop may be put aside
    assert resources.shared <= SHARED
    assert resources.registers * example.kernel.threads <= 65536 // max(resident, 2)  # so many blocks share a multiprocessor


@pytest.mark.slow
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


LARGEST = {
    "a page of keys and values": lambda more: attend_many_kernel(Attention(4, 2, 176 + 16 * more, None, 4, "bf16")),
    "queries that share a key": lambda more: attend_kernel(Attention(38 + more, 1, 128, None, 4, "bf16"), 2),
    "a vector": lambda more: matvec_kernel(Shape("bf16", 12288 + more, "f32"), norm=False, bias=False, finish=STORE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGEST)
def test_what_is_not_refused_can_be_assembled(name: str) -> None:
    """Shared memory of a block: the largest sizes that fit, and the next ones."""
    kernel = LARGEST[name](0)
    assert assemble(kernel.ptx((9, 0)), (9, 0)).shared > SHARED - 2048
    with pytest.raises(NoKernel, match="shared memory"):
        LARGEST[name](1)
