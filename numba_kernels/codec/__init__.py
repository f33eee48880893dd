"""Number formats: quantize, dequantize and repack kernels, one file per family.

Every kernel is plain scalar code over blocks of constant length, which LLVM vectorizes, in strict IEEE arithmetic without
fast-math: the bytes it makes do not depend on the processor. Kernels release the GIL and treat each row by itself.
"""
