"""Quantized checkpoints gone wrong: edits of tensors of a safetensors file in place."""

import json

import numpy as np


def change(folder, name, edit):
    """Applies `edit`, a function of a tensor's bytes as uint8 in its shape, to a tensor of folder/model.safetensors."""
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + size])[name]
    first, last = (8 + size + at for at in about["data_offsets"])
    values = np.frombuffer(bytes(content[first:last]), np.uint8).reshape(*about["shape"][:-1], -1)
    content[first:last] = np.ascontiguousarray(edit(values)).tobytes()
    file.write_bytes(content)


def shifted_scales(tensor):
    """All of an MXFP4 tensor's scales off by one: every value doubled."""
    return {f"{tensor}_scales": lambda scales: np.minimum(scales.astype(int) + 1, 254).astype(np.uint8)}


def swapped_gate_and_up(tensor, expert):
    """The rows of gate and up, which take turns, exchanged in one expert."""

    def swap(planes):
        planes = planes.copy()
        planes[expert] = planes[expert].reshape(-1, 2, *planes.shape[2:])[:, ::-1].reshape(planes.shape[1:])
        return planes

    return {f"{tensor}_{plane}": swap for plane in ("blocks", "scales")}


def swapped_experts(tensor, one, other):
    """Two experts of a layer exchanged, the router's rows not."""

    def swap(planes):
        planes = planes.copy()
        planes[[one, other]] = planes[[other, one]]
        return planes

    return {f"{tensor}_{plane}": swap for plane in ("blocks", "scales")}
