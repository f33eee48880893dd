"""Whether two checkpoints are one model: what their configurations compute, their tokenizers and chat templates, every value
of their tensors, whatever the containers."""

from oss_tools.verify.differences import PARTS, Difference, Said
from oss_tools.verify.said import compare_said
from oss_tools.verify.verify import TENSORS, TensorDifference, Verification, verify

__all__ = ["PARTS", "TENSORS", "Difference", "Said", "TensorDifference", "Verification", "compare_said", "verify"]
