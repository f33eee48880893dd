"""One file per architecture, named after its model_type: config, tensor names in every container, forward pass."""

from oss_tools.models.base import Architecture, architecture_of, architectures
from oss_tools.models.checkpoint import Checkpoint, open_checkpoint
from oss_tools.models.entries import Entry
from oss_tools.models.tensors import Placement, TensorSpec

__all__ = [
    "Architecture",
    "Checkpoint",
    "Entry",
    "Placement",
    "TensorSpec",
    "architecture_of",
    "architectures",
    "open_checkpoint",
]
