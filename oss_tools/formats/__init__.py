"""How numbers become bytes. One class per number format, one file per family; a new file here is a new format.

No Numba is imported before the first quantize or dequantize call, so that reading headers stays quick.
"""

from oss_tools.formats.base import Format, all_formats, format_of_ggml, get_format
from oss_tools.formats.qtensor import Plane, QTensor, concatenate

__all__ = ["Format", "Plane", "QTensor", "all_formats", "concatenate", "format_of_ggml", "get_format"]
