"""Tiles of registers that kernels work on: instructions on a device, their plain forms in the simulator."""

from numba_kernels.cuda.seam import SIMULATED

if SIMULATED:
    from numba_kernels.cuda import plain_tiles as _forms
else:
    from numba_kernels.cuda import tile_instructions as _forms  # type: ignore[no-redef]

anew = _forms.anew
commit_copies = _forms.commit_copies
copy_words = _forms.copy_words
load_row = _forms.load_row
masked_tile = _forms.masked_tile
multiply_columns = _forms.multiply_columns
multiply_far = _forms.multiply_far
multiply_unit = _forms.multiply_unit
multiply_rows = _forms.multiply_rows
powers_of_two = _forms.powers_of_two
row_maxima = _forms.row_maxima
row_sums = _forms.row_sums
scaled_tile = _forms.scaled_tile
store_rows = _forms.store_rows
store_part = _forms.store_part
wait_for_copies = _forms.wait_for_copies
zero_tile = _forms.zero_tile
