"""A repository as a hub has it, small: shards with their index, what is never fetched, a copy in another layout."""

import hashlib
import random
from pathlib import Path

REPO = "openai/gpt-oss-20b"


def files(seed: int = 1) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {
        "config.json": b'{"model_type": "gpt_oss"}',
        "model-00001-of-00002.safetensors": rng.randbytes(2_000_000),
        "model-00002-of-00002.safetensors": rng.randbytes(1_234_567),
        "model.safetensors.index.json": b"{}",
        "tokenizer.json": rng.randbytes(50_000),
        "LICENSE": b"Apache",
        "empty.json": b"",
        "pytorch_model.bin": b"evil",
        "training.py": b"evil",
        "metal/model.bin": b"evil",
        "original/model.safetensors": rng.randbytes(10_000),
        "original/config.json": b'{"num_experts": 4}',
    }


def tensors_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


def published(content: dict[str, bytes]) -> dict[str, str]:
    return {
        n: hashlib.sha256(d).hexdigest() for n, d in sorted(content.items()) if n.endswith("safetensors") and "/" not in n
    }
