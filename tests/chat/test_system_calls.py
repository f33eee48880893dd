"""The seccomp filter, run by a small interpreter of classic BPF, and its numbers against the kernel's headers."""

import re
import struct
from pathlib import Path

import pytest

from oss_tools.chat.tools.system_calls import ALLOWED, CONDITIONS, MACHINES, SELF, seccomp_filter

ALLOW, KILL, EPERM, ENOSYS = "allow", "kill", "EPERM", "ENOSYS"
RESULTS = {0x7FFF0000: ALLOW, 0x80000000: KILL, 0x00050001: EPERM, 0x00050026: ENOSYS}
HIGH = 1 << 32  # a bit that the kernel drops where the argument is an int


def decided(machine: str, number: int, *arguments: int, architecture: int | None = None) -> str:
    """What the filter says to a call."""
    data = struct.pack("<II Q 6Q", number, architecture or MACHINES[machine][1], 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("<HBBI", seccomp_filter(machine)))
    value, at = 0, 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            value &= operand
        elif code == 0x15:
            at += yes if value == operand else no
        elif code == 0x35:
            at += yes if value >= operand else no
        else:
            assert code == 0x06
            return RESULTS[operand]


def by_name(machine: str, name: str, *arguments: int) -> str:
    number = ALLOWED[name][MACHINES[machine][0]]
    assert number is not None
    return decided(machine, number, *arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_without_conditions_are_allowed_and_all_others_are_not(machine: str) -> None:
    free = {numbers[MACHINES[machine][0]] for name, numbers in ALLOWED.items() if name not in CONDITIONS}
    tied = {ALLOWED[name][MACHINES[machine][0]] for name in CONDITIONS}
    allowed = {number for number in range(600) if decided(machine, number, *[0xFFFF_FFFF_FFFF] * 6) == ALLOW}
    assert allowed == free - {None}
    assert not free & tied - {None}


@pytest.mark.parametrize("machine", MACHINES)
def test_other_machines_and_other_tables_end_the_process(machine: str) -> None:
    assert decided(machine, 0, architecture=0x40000003) == KILL  # i386
    assert decided(machine, 0x40000000) == KILL
    assert decided(machine, 0xFFFFFFFF) == KILL
    assert (
        decided(machine, 449) == decided(machine, 463) == decided(machine, 100_000) == ENOSYS
    )  # setxattrat; what is to come
    assert decided(machine, 435) == ENOSYS  # clone3


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        # no truncation without asking to write, no mode 3, no O_PATH, no O_ASYNC
        (
            "openat",
            [(0, 0, 0), (0, 0, 0o1101), (0, 0, 0o1102), (0, 0, 0o2000000)],
            [(0, 0, 0o1000), (0, 0, 3), (0, 0, 0o1003), (0, 0, 0o10000000), (0, 0, 0o20000), (0, 0, HIGH)],
        ),
        ("mkdirat", [(0, 0, 0o777), (0, 0, 0o700)], [(0, 0, 0), (0, 0, 0o077), (0, 0, 0o577)]),
        ("renameat2", [(0, 0, 0, 0, 0), (0, 0, 0, 0, 1)], [(0, 0, 0, 0, 2), (0, 0, 0, 0, 4)]),
        # no owners (8, 15), signals (10), leases (1024), notes (1026), pipe sizes (1031), seals (1033)
        (
            "fcntl",
            [(0, 0), (0, 3), (0, 4, 0o4000), (0, 6), (0, 1030)],
            [
                (0, 4, 0o20000),
                (0, 4, 0o24000),
                *((0, bad) for bad in (8, 10, 15, 1024, 1026, 1031, 1033, HIGH | 8, HIGH | 4)),
            ],
        ),
        # TIOCSTI, TIOCLINUX, FIOASYNC, FIOSETOWN, SIOCSPGRP, FICLONE, FS_IOC_SETFLAGS
        (
            "ioctl",
            [(0, 0x5401), (0, 0x541B)],
            [
                (0, bad)
                for bad in (0x5412, 0x541C, 0x5452, 0x8901, 0x8902, 0x40049409, 0x40086602, HIGH | 0x5412, HIGH | 0x5401)
            ],
        ),
        ("close_range", [(3, 9, 0), (3, 9, 4)], [(3, 9, 2), (3, 9, 6)]),
        (
            "socketpair",
            [(1, 1, 0), (1, 1 | 0o2004000, 0)],
            [(1, 2, 0), (1, 5, 0), (2, 1, 0), (1, 1, 1), (1, 3, 0), (HIGH | 1, 2, 0), (1, HIGH | 1, 0)],
        ),
        (
            "sendto",
            [(3, 9, 9, 0, 0, 0)],
            [(3, 9, 9, 1, 0, 0), (3, 9, 9, 0, 9, 0), (3, 9, 9, 0, HIGH, 0), (3, 9, 9, 0, 0, 9)],
        ),
        ("recvfrom", [(3, 9, 9, 0)], [(3, 9, 9, 1)]),
        (
            "clone",
            [(0x3D0F00,), (0x7D0F00,), (0x010F00,)],
            # a process; one that shares memory; a thread with descriptors of its own; vfork; name spaces; traced; a signal
            [
                (17,),
                (0x100,),
                (0x3D0B00,),
                (0x4111,),
                (0x3D0F00 | 0x20000,),
                (0x3D0F00 | 0x2000,),
                (0x3D0F11,),
                (HIGH | 0x3D0F00,),
            ],
        ),
        ("kill", [(SELF, 9)], [(0, 9), (1, 9), (0xFFFFFFFF, 9), (HIGH | SELF, 9)]),
        ("tgkill", [(SELF, 7, 9)], [(1, SELF, 9)]),
        ("prlimit64", [(0, 7, 0, 9)], [(0, 7, 9, 0), (0, 7, HIGH, 0), (1, 7, 0, 9)]),
        ("prctl", [(15,), (16,)], [(1,), (4,), (22,), (35,), (36,), (HIGH | 15,)]),
        ("getpgid", [(0,)], [(1,)]),
    ],
)
def test_arguments_decide(machine: str, name: str, good: list[tuple[int, ...]], bad: list[tuple[int, ...]]) -> None:
    assert [arguments for arguments in good if by_name(machine, name, *arguments) != ALLOW] == []
    assert [arguments for arguments in bad if by_name(machine, name, *arguments) != EPERM] == []


def test_every_condition_is_of_a_call_that_is_allowed() -> None:
    assert set(CONDITIONS) <= set(ALLOWED)


def test_numbers_are_the_kernels() -> None:
    headers = [*Path("/usr/include").glob("*/asm/unistd_64.h"), *Path("/usr/include").glob("asm/unistd_64.h")]
    generic = Path("/usr/include/asm-generic/unistd.h")
    if not generic.exists():
        pytest.skip("no kernel headers here")
    text = generic.read_text()
    arm = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", text)}
    arm |= {name: arm[other] for name, other in re.findall(r"#define __NR_(\w+) __NR3264_(\w+)", text) if other in arm}
    ours = {name: number for name, (_, number) in ALLOWED.items() if number is not None}
    assert ours == {name: arm.get(name) for name in ours}
    for header in headers:
        if "__NR_arch_prctl" in (text := header.read_text()):  # x86-64's own table
            x86 = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", text)}
            assert {name: x86.get(name) for name in ALLOWED} == {name: number for name, (number, _) in ALLOWED.items()}
