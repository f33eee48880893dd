"""The instructions that kernels are written with: PTX on a device, their plain forms in the simulator."""

from numba_kernels.cuda.seam import SIMULATED

if SIMULATED:
    from numba_kernels.cuda import plain as _forms
else:
    from numba_kernels.cuda import instructions as _forms  # type: ignore[no-redef]

as_int = _forms.as_int
bits_as_float = _forms.bits_as_float
byte_permute = _forms.byte_permute
count_up = _forms.count_up
dp4a = _forms.dp4a
early_floats = _forms.early_floats
early_scale = _forms.early_scale
early_words = _forms.early_words
float_as_bits = _forms.float_as_bits
half_as_float = _forms.half_as_float
largest_of_warp = _forms.largest_of_warp
least_of_warp = _forms.least_of_warp
let_next_begin = _forms.let_next_begin
load_floats = _forms.load_floats
load_fresh = _forms.load_fresh
load_pair = _forms.load_pair
load_words = _forms.load_words
multiply_pairs = _forms.multiply_pairs
multiply_tiles = _forms.multiply_tiles
pack_bf16 = _forms.pack_bf16
power_of_two = _forms.power_of_two
prefetch = _forms.prefetch
prefetch_span = _forms.prefetch_span
reciprocal = _forms.reciprocal
round_to_int = _forms.round_to_int
settled = _forms.settled
settled_floats = _forms.settled_floats
settled_words = _forms.settled_words
shuffle_xor = _forms.shuffle_xor
store_floats = _forms.store_floats
store_words = _forms.store_words
stream_words = _forms.stream_words
wait_for_launch_before = _forms.wait_for_launch_before
warp_barrier = _forms.warp_barrier
warp_max = _forms.warp_max
warp_sum = _forms.warp_sum
