"""How numbers become bytes. One class per number format, one file per family; a new file here is a new format.

No Numba is imported before the first quantize or dequantize call, so that reading headers stays quick.
"""

from oss_tools.formats.base import Format, Plane, QTensor, all_formats, concatenate, format_of_ggml, get_format

__all__ = ["Format", "Plane", "QTensor", "all_formats", "concatenate", "format_of_ggml", "get_format"]
