"""Number formats: quantize, dequantize and repack kernels, one file per family.

What searches and rounds is written against `simd/` and takes the rounding error on its way; the rest is plain scalar code over
blocks of constant length, which LLVM vectorizes. Both are strict IEEE arithmetic without fused multiply-add or fast-math: the
bytes do not depend on the processor. Kernels release the GIL and treat each row
by itself (`fp8.block_scales`: each block of rows).
"""
