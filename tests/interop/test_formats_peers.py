"""MXFP4 against torchao; NVFP4, FP8 and int8 against compressed-tensors; the float types against ml_dtypes."""

import numpy as np
import pytest

from oss_tools.formats import get_format

pytestmark = pytest.mark.peers
K = 1024


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((32, K)).astype(np.float32)
    zeros = values.copy()
    zeros.reshape(-1, 32)[::3] = 0
    return {
        "gaussian": values,
        "bf16": (values.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "grid": (rng.integers(-24, 25, values.shape) / 4).astype(np.float32),
        "small": values * np.float32(1e-20),
        "zero blocks": zeros,
    }


@pytest.mark.parametrize("kind", samples())
def test_mxfp4_ocp_rule_makes_torchaos_bytes(kind: str) -> None:
    torch = pytest.importorskip("torch")
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    values = samples()[kind]
    scales, codes = mx.to_mx(torch.from_numpy(values), torch.float4_e2m1fn_x2, 32, mx.ScaleCalculationMode.FLOOR)
    tensor = get_format("mxfp4").quantize(values, rule="ocp")
    np.testing.assert_array_equal(tensor.planes["scales"], scales.view(torch.uint8).numpy().reshape(32, -1))
    np.testing.assert_array_equal(tensor.planes["blocks"], codes.view(torch.uint8).numpy())


def test_mxfp4_decodes_as_in_transformers() -> None:
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    tensor = get_format("mxfp4").quantize(samples()["gaussian"])
    blocks = torch.from_numpy(tensor.planes["blocks"].reshape(1, 32, K // 32, 16))
    scales = torch.from_numpy(tensor.planes["scales"].reshape(1, 32, K // 32))
    theirs = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)  # [1, K, 32]: transposed
    np.testing.assert_array_equal(theirs[0].T.numpy(), tensor.dequantize())


@pytest.mark.parametrize("kind", samples())
def test_nvfp4_is_compressed_tensors_own(kind: str) -> None:
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.compressors.nvfp4.helpers import quantize_and_pack_fp4, unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    values = samples()[kind]
    tensor = get_format("nvfp4").quantize(values, rule="plain")
    arguments = quantization.QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True, scale_dtype=torch.float8_e4m3fn
    )
    weight = torch.from_numpy(values)
    global_scale = 1 / torch.from_numpy(tensor.planes["tensor_scale"][0])  # as our checkpoints hold it
    np.testing.assert_allclose(global_scale, generate_gparam(weight.min(), weight.max()), rtol=1.2e-7)
    groups = weight.reshape(32, -1, 16)
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments, global_scale)
    empty = groups.abs().amax(-1).numpy() == 0  # compressed-tensors gives an empty block a scale of 1/8, we give it 0
    codes = scale.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(tensor.planes["scales"], np.where(empty, 0, codes))
    packed = quantize_and_pack_fp4(weight, scale, global_scale=global_scale)
    np.testing.assert_array_equal(tensor.planes["blocks"], packed.numpy())

    searched = get_format("nvfp4").quantize(values)
    unpacked = unpack_fp4_from_uint8(torch.from_numpy(searched.planes["blocks"]), 32, K, dtype=torch.float32)
    scale = torch.from_numpy(searched.planes["scales"]).view(torch.float8_e4m3fn).float()
    theirs = dequantize(unpacked, scale, args=arguments, global_scale=global_scale, dtype=torch.float32)
    np.testing.assert_allclose(searched.dequantize(), theirs.numpy(), rtol=3e-7)


@pytest.mark.parametrize(
    ("name", "strategy", "group"), [("int8", "channel", None), ("int8_g128", "group", 128), ("int8_g32", "group", 32)]
)
def test_int8_decodes_as_in_compressed_tensors(name: str, strategy: str, group: int | None) -> None:
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    tensor = get_format(name).quantize(samples()["gaussian"])
    arguments = quantization.QuantizationArgs(num_bits=8, type="int", strategy=strategy, group_size=group)
    scale = torch.from_numpy(tensor.planes["scales"].view(np.int16)).view(torch.bfloat16).float()
    theirs = dequantize(torch.from_numpy(tensor.planes["codes"]), scale, args=arguments, dtype=torch.float32)
    np.testing.assert_array_equal(tensor.dequantize(), theirs.numpy())


@pytest.mark.parametrize("kind", samples())
def test_fp8_is_compressed_tensors_own(kind: str) -> None:
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

    values = samples()[kind]
    tensor = get_format("fp8_e4m3").quantize(values)
    arguments = quantization.QuantizationArgs(num_bits=8, type="float", strategy="channel")
    scale = torch.from_numpy(tensor.planes["scales"].view(np.int16)).view(torch.bfloat16).float()
    assert (scale > 0).all()
    codes = quantize(torch.from_numpy(values), scale, None, args=arguments, dtype=torch.float8_e4m3fn)
    np.testing.assert_array_equal(tensor.planes["codes"], codes.view(torch.uint8).numpy())
    theirs = dequantize(codes, scale, args=arguments, dtype=torch.float32)
    np.testing.assert_array_equal(tensor.dequantize(), theirs.numpy())


def test_floats_are_those_of_ml_dtypes_and_numpy() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = np.random.default_rng(0).integers(0, 2**32, (64, K), np.uint32)
    values = np.nan_to_num(bits.view(np.float32), nan=0, posinf=1, neginf=-1)
    values[np.abs(values) > 3.38e38] = 1
    ours = get_format("bf16").quantize(values)
    np.testing.assert_array_equal(ours.planes["values"], values.astype(ml_dtypes.bfloat16).view(np.uint16))
    values[np.abs(values) >= 65520] = 1
    np.testing.assert_array_equal(get_format("f16").quantize(values).planes["values"], values.astype(np.float16))


def test_e4m3_is_that_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.ldexp(np.random.default_rng(0).uniform(-1, 1, (64, K)), -np.arange(64)[:, None] % 22 + 9).astype(np.float32)
    values = np.clip(values, -448, 448)
    values[:, 0] = 448  # makes the scale 1
    tensor = get_format("fp8_e4m3").quantize(values)
    np.testing.assert_array_equal(tensor.planes["codes"], values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
