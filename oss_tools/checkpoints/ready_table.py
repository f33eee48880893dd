"""The table of a run-ready file, which is JSON: its tensors, records and texts; what is checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from numba_kernels.cpu.geometry import divides
from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.files import is_plain_name
from oss_tools.checkpoints.ready_layout import BadTable, Group, Layout, lay_out, matrices
from oss_tools.checkpoints.safetensors import is_sane_name
from oss_tools.formats import all_formats

MAX_TENSORS = 1 << 18
MAX_FILES = 64
MAX_AXES = 16
LANES = (8, 16)


def chosen(groups: Sequence[Group], tensors: Mapping[str, StoredTensor]) -> list[Group]:
    """What of the stacks that kernels would like can be had: tensors that are there and have panels, of one format in a stack.
    Tensors that only lie one under another get stacks of their own where their formats differ."""
    found: list[Group] = []
    taken: set[str] = set()
    for group in groups:
        stacks: Group = []
        for names, interleave in group:
            if any(name not in tensors or name in taken for name in names):
                continue
            together = len({tensors[name].format for name in names}) == 1
            parts = [names] if together else [] if interleave else [[name] for name in names]
            stacks += [(part, interleave) for part in parts if all(_has_panels(tensors[name]) for name in part)]
        counts = {matrices(tensors[names[0]])[0] for names, _ in stacks}
        found += [stacks] if len(counts) == 1 and max(counts) > 1 else [[stack] for stack in stacks]
        taken |= {name for names, _ in stacks for name in names}
    return found


def _has_panels(tensor: StoredTensor) -> bool:
    return len(tensor.shape) > 1 and divides(tensor.format.name, tensor.shape[-1])


def table(
    lanes: int, biased: bool, tensors: Sequence[StoredTensor], groups: Sequence[Group], texts: Mapping[str, bytes]
) -> dict[str, Any]:
    """What a file's table says. `texts`: config, metadata, then companion files."""
    return {
        "lanes": lanes,
        "biased": biased,
        "tensors": [[t.name, t.format.name, list(t.shape)] for t in tensors],
        "records": [[[list(names), interleave] for names, interleave in group] for group in groups],
        "texts": [[name, len(content)] for name, content in texts.items()],
    }


def table_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")


def read_table(content: Mapping[str, Any], nbytes: int, file_size: int) -> Layout:
    """The layout that a table of so many bytes stands for. Raises BadTable; takes no memory that the table has not."""
    if set(content) != {"lanes", "biased", "tensors", "records", "texts"}:
        raise BadTable("its keys are not those of a run-ready file")
    lanes, biased = content["lanes"], content["biased"]
    if type(lanes) is not int or lanes not in LANES or type(biased) is not bool:
        raise BadTable(f"lanes are {str(lanes)[:20]!r}, biased {str(biased)[:20]!r}")
    tensors = _tensors(content["tensors"], file_size)
    groups = _groups(content["records"], tensors)
    return lay_out(lanes, biased, tensors, groups, _texts(content["texts"], file_size), nbytes)


def _tensors(listed: Any, file_size: int) -> list[StoredTensor]:
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise BadTable(f"tensors are no list, or more than {MAX_TENSORS}")
    formats, found = all_formats(), dict[str, StoredTensor]()
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 3 or not all(isinstance(text, str) for text in entry[:2]):
            raise BadTable(f"the tensor {str(entry)[:80]!r} is no [name, format, shape]")
        name, format, shape = entry
        if not is_sane_name(name) or name in found:
            raise BadTable(f"tensor name {name[:80]!r} is empty, too long, unprintable or there twice")
        if format not in formats:
            raise BadTable(f"tensor {name}: no number format named {format[:40]!r}")
        sane = (
            isinstance(shape, list) and 0 < len(shape) <= MAX_AXES and all(type(axis) is int and axis > 0 for axis in shape)
        )
        if not sane:
            raise BadTable(f"tensor {name}: the shape {str(shape)[:80]} is none")
        if not formats[format].fits(shape[-1]):
            raise BadTable(f"tensor {name}: {shape[-1]} columns do not divide into blocks of {format}")
        if prod(shape) > 64 * file_size:  # no format has less than an eighth of a byte for a value
            raise BadTable(f"tensor {name}: {prod(shape)} values cannot lie in a file of {file_size} bytes")
        found[name] = StoredTensor(name, formats[format], tuple(shape))
    return list(found.values())


def _groups(listed: Any, tensors: Sequence[StoredTensor]) -> list[Group]:
    by_name = {tensor.name: tensor for tensor in tensors}
    taken: set[str] = set()
    if not isinstance(listed, list):
        raise BadTable("records are no list")
    groups: list[Group] = []
    for record in listed:
        stacks: Group = []
        for stack in record if isinstance(record, list) else ():
            sane = isinstance(stack, list) and len(stack) == 2 and isinstance(stack[0], list) and type(stack[1]) is bool
            if not sane or not stack[0] or not all(isinstance(name, str) for name in stack[0]):
                raise BadTable(f"the stack {str(stack)[:80]!r} is no [[names], interleave]")
            for name in stack[0]:
                if name not in by_name or name in taken:
                    raise BadTable(f"a record holds {name[:80]!r}, which is no tensor of the file, or in another one too")
                taken.add(name)
            stacks.append((stack[0], stack[1]))
        if not stacks:
            raise BadTable("a record is empty, or no list")
        groups.append(stacks)
        _check_group(stacks, by_name)
    return groups


def _check_group(group: Group, tensors: Mapping[str, StoredTensor]) -> None:
    counts = set()
    for names, interleave in group:
        members = [tensors[name] for name in names]
        if any(not _has_panels(t) or (t.format, t.shape[-1]) != (members[0].format, members[0].shape[-1]) for t in members):
            raise BadTable(f"the tensors {', '.join(names)[:160]} have no panels in common")
        if interleave and len({t.shape[-2] for t in members}) > 1:
            raise BadTable(f"the tensors {', '.join(names)[:160]} take turns row by row, but have different numbers of them")
        counts |= {matrices(t)[0] for t in members}
    if len(counts) > 1:
        raise BadTable(f"the tensors of a record ({group[0][0][0]}, …) have different numbers of matrices")


def _texts(listed: Any, file_size: int) -> list[tuple[str, int]]:
    if not isinstance(listed, list) or not 2 <= len(listed) <= MAX_FILES + 2:
        raise BadTable(f"texts are no list of config, metadata and at most {MAX_FILES} files")
    found: dict[str, int] = {}
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or type(entry[1]) is not int:
            raise BadTable(f"the text {str(entry)[:80]!r} is no [name, bytes]")
        name, nbytes = entry
        if not is_plain_name(name) or name in found or not 0 <= nbytes <= file_size:
            raise BadTable(f"the text {name[:80]!r} has a bad name or size, or is there twice")
        found[name] = nbytes
    if list(found)[:2] != ["config", "metadata"]:
        raise BadTable("the first texts are not config and metadata")
    return list(found.items())
