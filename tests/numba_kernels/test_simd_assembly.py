"""What LLVM makes of the x86 paths' instructions, on any machine: assembly is read, and not executed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from numba_kernels import simd
from numba_kernels.simd import amx
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I32, I64
from numba_kernels.simd.x86 import Avx512, Avx512Bf16, AvxVnni

ROOT = Path(__file__).parent.parent.parent
WHOLE = """
import json, sys
from numba_kernels.cpu.linear import linear_op
from numba_kernels.cpu.attention import attention_op
ops = {" ".join(a): linear_op(*a, many=True) for a in map(str.split, sys.argv[2:])}
if sys.argv[1] == "attention":
    ops["attention"] = attention_op(8)
print(json.dumps({name: (op.address, op._compiled._library.get_asm_str())[1] for name, op in ops.items()}))
"""


def assembly(body, cpu, features=""):
    """Of a function of three addresses, whose LLVM body a function emits."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 3), "f")
    b = ir.IRBuilder(function.append_basic_block())
    body(b, *function.args)
    b.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3)
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


def products_of_bytes(path):
    """sums += codes · x, where four codes of x are in every lane."""

    def body(b, sums, codes, x):
        words, quads = emit.vector(I32, path.lanes), emit.vector(I8, 4 * path.lanes)
        given = b.bitcast(emit.splat(b, emit.load(b, x, I32), path.lanes), quads)
        emit.store(b, path.dot_unsigned(b, emit.load(b, sums, words), emit.load(b, codes, quads), given), sums)

    return body


def test_avx_vnni_is_vex_encoded():
    path = AvxVnni()
    text = assembly(products_of_bytes(path), path.baseline, path.extra)
    assert re.search(r"\{vex\}\s+vpdpbusd\s.*%ymm", text)
    assert "zmm" not in text


def test_avx512_vnni_is_one_instruction():
    text = assembly(products_of_bytes(Avx512()), "cascadelake")
    assert len(re.findall(r"vpdpbusd\s.*%zmm", text)) == 1
    assert "{vex}" not in text


def test_products_of_bfloat16_take_their_second_factor_from_memory():
    path = Avx512Bf16()

    def body(b, sums, pairs, x):
        words, floats = emit.vector(I32, path.lanes), emit.vector(F32, path.lanes)
        given = emit.splat(b, emit.load(b, x, I32), path.lanes)
        emit.store(b, path.dot_pairs(b, emit.load(b, sums, floats), emit.load(b, pairs, words), given), sums)

    text = assembly(body, "cooperlake")
    assert len(re.findall(r"vdpbf16ps\s+\(%\w+\)\{1to16\}, %zmm", text)) == 1


def test_matrix_registers_are_given_their_shapes_and_taken_back():
    def body(b, sums, codes, x):
        amx.configure(b, [(16, 64)] * 4 + [(16, 32)] * 2 + [(8, 64)] * 2)
        amx.load(b, 4, x, 64)
        amx.load(b, 6, codes, 64)
        amx.zero(b, 0)
        amx.multiply_bytes(b, 0, 4, 6)
        amx.multiply_floats(b, 0, 4, 6)
        amx.store(b, 0, sums)
        amx.release(b)

    text = assembly(body, "sapphirerapids")
    found = re.findall(r"ldtilecfg|tdpb(?:ssd|f16ps)\s+%tmm6, %tmm4, %tmm0|tilestored\s+%tmm0|tilerelease", text)
    assert [word.split()[0] for word in found] == ["ldtilecfg", "tdpbssd", "tdpbf16ps", "tilestored", "tilerelease"]


def whole_kernels(path, tmp_path, *what):
    environment = {**os.environ, "OSS_TOOLS_SIMD": path, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WHOLE, *what], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif("avxvnni" not in simd.executable_paths(), reason="this processor lacks AVX-VNNI")
def test_whole_kernels_for_avx_vnni(tmp_path):
    """Every product of bytes is the VEX form, and nothing needs AVX-512."""
    kernels = whole_kernels(
        "avxvnni", tmp_path, "attention", "mxfp4 int8", "q8_0 int8_g16", "q4_k int8_g16", "q6_k int8_g16"
    )
    for name, text in kernels.items():
        assert not re.search(r"%zmm|%k[0-7]|%ymm(1[6-9]|2\d|3\d)", text), name
        found = re.findall(r"(\{vex\}\s+)?vpdpbusd", text)
        assert all(found), name
        assert name == "attention" or len(found) >= 16, name


@pytest.mark.slow
@pytest.mark.skipif("avx512bf16" not in simd.executable_paths(), reason="this processor lacks AVX-512 BF16")
def test_whole_kernels_for_avx512_bf16(tmp_path):
    """bf16 activations are multiplied without being made float32 first."""
    text = whole_kernels("avx512bf16", tmp_path, "", "bf16 bf16")["bf16 bf16"]
    assert len(re.findall("vdpbf16ps", text)) >= 48
    assert not re.search(r"vfmadd\w+ps", text)


@pytest.mark.slow
@pytest.mark.skipif("avx512" not in simd.executable_paths(), reason="this processor lacks AVX-512 VNNI")
def test_dot_products_of_a_tile_do_not_wait_for_each_other(tmp_path):
    """In a tile of 12 tokens, one after the other goes to another sum, and sums stay in registers."""
    text = whole_kernels("avx512", tmp_path, "", "mxfp4 int8")["mxfp4 int8"]
    largest = max(re.split(r"\n(?=_ZN)", text), key=lambda part: len(re.findall("vpdpbusd", part)))
    sums = re.findall(r"vpdpbusd\s.*, %zmm(\d+)\n", largest)
    assert len(sums) == 96
    near = [sums[i] in sums[max(i - 5, 0) : i] for i in range(len(sums))]
    assert sum(near) <= 5, sums
    assert len(re.findall(r"%zmm\d+, -?\d*\(%rsp\)", largest)) <= 16  # the results, and constants before the loop
