"""Files beside the tensors: what travels with a model, and what stays."""

from pathlib import Path

import pytest

from oss_tools.checkpoints import Metadata
from oss_tools.errors import BadCheckpoint
from oss_tools.models.checkpoint import open_checkpoint
from tests.checkpoints.small_models import (
    LLAMA,
    save,
)

CARD = b"""---
license: apache-2.0
language:
- en
- de
tags: [vllm]
---
# A model
"""


def test_companions_travel_and_code_stays(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    save(LLAMA, "hf", source)
    kept = {"README.md": CARD, "LICENSE": b"x", "USAGE_POLICY": b"y", "special_tokens_map.json": b"{}"}
    left = {
        "modeling_llama.py": b"import os",
        "pytorch_model.bin": b"\x80",
        "LICENSE.py": b"",
        "README.pickle": b"",
        ".x": b"",
    }
    for name, content in {**kept, **left}.items():
        (source / name).write_bytes(content)
    (source / "tokenizer.json").write_text('{"model": {"vocab": {"\\ud83d": 0, "é": 1}}}')
    (source / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "{{ messages }}"}')
    (source / "generation_config.json").write_text('{"do_sample": true}')
    with open_checkpoint(source) as checkpoint:
        metadata = checkpoint.metadata()
    assert metadata.files == kept
    assert metadata.general == {"name": "source", "license": "apache-2.0", "languages": ["en", "de"], "tags": ["vllm"]}
    assert metadata.chat_template == "{{ messages }}"
    save(LLAMA, "hf", target, metadata=metadata)
    with open_checkpoint(target) as checkpoint:
        again = checkpoint.metadata()
    assert again.files == kept
    assert again.tokenizer == metadata.tokenizer
    assert again.tokenizer_config == {"eos_token": "</s>"}
    assert again.chat_template == "{{ messages }}"
    assert again.generation_config == {"do_sample": True}
    assert not any((target / name).exists() for name in left)


@pytest.mark.parametrize("name", ["../x", "config.json", "tokenizer.json", "a/b", "x.safetensors", "run.py", ""])
def test_companions_with_reserved_names_are_not_written(tmp_path: Path, name: str) -> None:
    metadata = Metadata(LLAMA.hf_config(), files={name: b"x"})
    with pytest.raises(BadCheckpoint, match="cannot be written"):
        save(LLAMA, "hf", tmp_path / "m", metadata=metadata)


@pytest.mark.parametrize(
    "card", [b"---\n- 1\n---\n", b"---\na: [\n---\n", b"---\n" + b"[" * 9000 + b"\n---\n", b"---\n\xff: 1\n---\n", b"x"]
)
def test_model_cards_that_cannot_be_read_are_no_error(tmp_path: Path, card: bytes) -> None:
    save(LLAMA, "hf", tmp_path)
    (tmp_path / "README.md").write_bytes(card)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.metadata().general == {"name": tmp_path.name}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_companions_that_cannot_be_parsed_are_refused(tmp_path: Path, name: str) -> None:
    save(LLAMA, "hf", tmp_path)
    (tmp_path / name).write_bytes(b"{'a': 1}")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(BadCheckpoint, match=f"{name}: not JSON"):
        checkpoint.metadata()
