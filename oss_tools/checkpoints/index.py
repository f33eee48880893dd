"""Which safetensors files of a folder hold its model: model.safetensors, the shards that an index names, or what is there alone.

The choice is transformers': model.safetensors before an index, and of an index's files all tensors.
"""

from __future__ import annotations

import re
from pathlib import Path

from oss_tools.checkpoints.files import is_plain_name
from oss_tools.checkpoints.json_files import read_json
from oss_tools.checkpoints.safetensors import is_sane_name
from oss_tools.checkpoints.strange import adapter
from oss_tools.errors import BadCheckpoint

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
MAX_SHARDS = 4096
MAX_TENSORS = 1 << 19  # of all files together
PART = re.compile(r"(.+?)-+(\d{5})-of-(\d{5})\.safetensors")


def chosen_files(path: Path, remarks: list[str]) -> tuple[list[str], dict[str, str]]:
    """(names of the files to read, tensor -> file as the index has it, or {}). Adds to the remarks what is passed over.

    `path` is a folder or one safetensors file. Raises BadCheckpoint.
    """
    if not path.is_dir():
        if not _is_shard(path):
            return [path.name], {}
        remarks.append(f"{path.name}: one of the shards that {INDEX} names, all of which are read")
        path = path.parent
    there = sorted(p.name for p in path.glob("*.safetensors") if p.name != ADAPTER and p.name.isprintable())
    index: dict[str, str] = {}
    if SINGLE in there:
        names = [SINGLE]
    elif (path / INDEX).exists():
        index = _read_index(path / INDEX)
        names = sorted(set(index.values()))
        _check_presence(path, names, there)
    else:
        names = _without_index(path, there, remarks)
    passed_over = [name for name in there if name not in names]
    if passed_over:
        more = f" and {len(passed_over) - 1} more" if len(passed_over) > 1 else ""
        chosen = f"{INDEX} does not name it" if index else f"{SINGLE} is"
        remarks.append(f"{passed_over[0]}{more}: not read; {chosen}")
    if (path / ADAPTER).exists():
        remarks.append(f"{ADAPTER}: an adapter beside the model, which is not applied to it")
    return names, index


def _is_shard(path: Path) -> bool:
    """Whether a file is one of those that the index beside it names, and that are what is read of their folder."""
    index = path.with_name(INDEX)
    return index.exists() and not path.with_name(SINGLE).exists() and path.name in _read_index(index).values()


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{path}: weight_map is not an object with entries")
    if len(weight_map) > MAX_TENSORS:
        raise BadCheckpoint(f"{path}: {len(weight_map)} tensors, more than the {MAX_TENSORS} allowed")
    for tensor, shard in weight_map.items():
        if not is_sane_name(tensor):
            raise BadCheckpoint(f"{path}: tensor name {tensor[:80]!r} is empty, too long or unprintable")
        if not isinstance(shard, str) or not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise BadCheckpoint(
                f"{path}: tensor {tensor} is said to lie in {str(shard)[:80]!r}, which is not the name of a "
                ".safetensors file in this folder"
            )
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise BadCheckpoint(f"{path}: {len(set(weight_map.values()))} safetensors files, more than the {MAX_SHARDS} allowed")
    return weight_map


def _check_presence(folder: Path, names: list[str], there: list[str]) -> None:
    """Raises BadCheckpoint if files that the index names are missing."""
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return
    if len(missing) == len(names) and there:
        raise BadCheckpoint(
            f"{folder / INDEX}: of another build: it names {missing[0]}, the folder holds {there[0]}; "
            "fetch the index that belongs to them"
        )
    more = f", one of {len(missing)} that are missing" if len(missing) > 1 else ""
    raise BadCheckpoint(
        f"{folder / missing[0]}: no such file{more}, though {INDEX} names {len(names)}; is the download complete?"
    )


def _without_index(folder: Path, there: list[str], remarks: list[str]) -> list[str]:
    """The only file there is, or the shards of one complete set."""
    if not there:
        raise BadCheckpoint(f"{folder}: {adapter(folder) or 'holds no .safetensors file'}")
    if len(there) > MAX_SHARDS:
        raise BadCheckpoint(f"{folder}: {len(there)} safetensors files, more than the {MAX_SHARDS} allowed")
    parts = [match for name in there if (match := PART.fullmatch(name))]
    sets = {(match[1], int(match[3])) for match in parts}
    if len(sets) == 1 and len(parts) == len(there):
        ((stem, count),) = sets
        lacking = sorted(set(range(1, count + 1)) - {int(match[2]) for match in parts})
        if lacking:
            raise BadCheckpoint(
                f"{folder}: part {lacking[0]} of {count} is missing ({there[0]} is there); is the download complete?"
            )
        if count > 1:
            remarks.append(f"{INDEX} is missing; all {count} parts of {stem} are there and are read")
        return there
    if len(there) > 1:
        raise BadCheckpoint(
            f"{folder}: {len(there)} .safetensors files, but no {INDEX} and no {SINGLE}; name one of the files"
        )
    return there
