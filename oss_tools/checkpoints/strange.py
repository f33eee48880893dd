"""What a file or folder is that holds no checkpoint, in its owner's words, and what to do with it.

Nothing is opened but small text files and the first bytes of large ones; nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from oss_tools.checkpoints.files import what_is
from oss_tools.checkpoints.json_files import read_json
from oss_tools.errors import BadCheckpoint

MAX_MANIFEST = 1 << 20  # bytes
OLLAMA_MODEL = "application/vnd.ollama.image.model"
MAX_LISTED = 4096  # entries of a folder that are looked at
CONVERT = (
    "pickled weights are never opened here; make safetensors of them with transformers: "
    "`AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)`"
)
PICKLED = re.compile(r"(pytorch_model.*\.bin|consolidated.*\.pth|model.*\.(bin|pt|pth|ckpt)|.*\.(pt|pth|ckpt|pkl|pickle))")
SHARD_OF_PICKLE = re.compile(r"pytorch_model.*\.bin")
OTHERS = (  # suffix, what it is of
    (".h5", "TensorFlow"),
    (".msgpack", "Flax"),
    (".onnx", "ONNX"),
    (".onnx_data", "ONNX"),
    (".tflite", "TensorFlow Lite"),
    (".nemo", "NVIDIA NeMo"),
    (".distcp", "PyTorch's distributed checkpoints"),
    (".npz", "NumPy or MLX"),
    (".mlpackage", "Core ML"),
    (".engine", "TensorRT"),
    (".xml", "OpenVINO"),
)
STEP = re.compile(r"(?:checkpoint|step|epoch|iter)[-_](\d+)")


def explain(path: Path) -> str | None:
    """One line on what a path is that no reader recognizes; None if that is not known."""
    try:
        return _folder(path) if path.is_dir() else _file(path)
    except OSError:  # what cannot be looked into stays unknown
        return None


def adapter(folder: Path) -> str | None:
    """A line on an adapter's folder; None if it is none."""
    config = folder / "adapter_config.json"
    if not config.exists() and not (folder / "adapter_model.safetensors").exists():
        return None
    base = None
    try:
        fields = read_json(config) if config.exists() else {}
        base, kind = fields.get("base_model_name_or_path"), fields.get("peft_type")
    except BadCheckpoint:  # the line can do without it
        kind = None
    kind = kind if isinstance(kind, str) and kind.isalnum() else "LoRA"
    of = f" of {base[:200]}" if isinstance(base, str) and base.isprintable() and base else ""
    return f"an adapter ({kind}){of} alone, without the model; `oss-tools merge MODEL ADAPTER DST` makes one of the two"


def _file(path: Path) -> str | None:
    found = what_is(path)
    if found:
        return found
    if PICKLED.fullmatch(path.name):
        return f"PyTorch's pickled weights; {CONVERT}"
    if path.name.startswith("sha256-"):
        return "a blob of Ollama that holds no model (a template, a licence); the model is the manifest's largest blob"
    for suffix, whose in OTHERS:
        if path.suffix == suffix:
            return f"a file of {whose}, which is not read; give the model's safetensors or GGUF"
    if path.suffix == ".json" and (path.parent / "config.json").exists():
        return f"a part of a checkpoint; give the folder that it lies in: {path.parent}"
    return _manifest(path)


def _manifest(path: Path) -> str | None:
    """A line on a manifest of Ollama's, which lies in models/manifests/HOST/USER/NAME/TAG and names blobs in models/blobs."""
    if "manifests" not in path.parts or path.stat().st_size > MAX_MANIFEST:
        return None
    try:
        layers = read_json(path).get("layers")
    except BadCheckpoint:  # something else
        return None
    for layer in layers if isinstance(layers, list) else []:
        digest = layer.get("digest") if isinstance(layer, dict) and layer.get("mediaType") == OLLAMA_MODEL else None
        if isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            models = Path(*path.parts[: path.parts.index("manifests")])
            return f"a manifest of Ollama's; its model is {models / 'blobs' / digest.replace(':', '-')}"
    return None


def _folder(folder: Path) -> str | None:
    found = [entry.name for entry in islice(folder.iterdir(), MAX_LISTED)]
    if not found:
        return "an empty folder"
    names = sorted(name for name in found if name.isprintable())
    if line := adapter(folder) or _unfinished(folder, names):
        return line
    has_tensors = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    if has_tensors and "config.json" not in names:
        return _below(folder) or "holds .safetensors files, but no config.json, which says what model they make up"
    if line := _below(folder):
        return line
    pickled = [name for name in names if SHARD_OF_PICKLE.fullmatch(name)] or [n for n in names if PICKLED.fullmatch(n)]
    if pickled:
        return f"holds {pickled[0]}, PyTorch's pickled weights, and no safetensors; {CONVERT}"
    for suffix, whose in OTHERS:
        if any(name.endswith(suffix) for name in names):
            return f"holds weights of {whose}, which are not read, and no safetensors or GGUF"
    if "saved_model.pb" in names:
        return "holds weights of TensorFlow, which are not read, and no safetensors or GGUF"
    if "config.json" in names:
        return "holds config.json, but no weights (.safetensors); is the download complete?"
    return None


def _unfinished(folder: Path, names: list[str]) -> str | None:
    """A line on a download that broke off."""
    parts = [name for name in names if name.endswith((".incomplete", ".part", ".aria2", ".crdownload"))]
    parts += [p.name for p in islice(folder.glob(".cache/huggingface/download/*.incomplete"), 1)]
    whole = any(name.endswith((".safetensors", ".gguf")) for name in names)
    return (
        f"an unfinished download ({parts[0]}); repeat it, which goes on where it broke off" if parts and not whole else None
    )


def _below(folder: Path) -> str | None:
    """A line on a model in a folder below: the last of a training run's checkpoints, or the only one there is."""
    below = list(_folders(folder))
    models = [each for each in below if _is_model(each)]
    trained = models or [each for each in below if adapter(each)]
    steps = [(int(match[1]), each) for each in trained if (match := STEP.fullmatch(each.name))]
    if steps:
        last = max(steps)[1]
        if not _is_model(last):
            return f"a training run of an adapter; {last} is {adapter(last)}"
        return f"a training run; give one of its checkpoints ({len(steps)}), the latest is {last}"
    if models:
        others = f" (and {len(models) - 1} more)" if len(models) > 1 else ""
        return f"holds no model itself, but a folder below does; give {models[0]}{others}"
    return None


def _folders(folder: Path) -> Iterator[Path]:
    for entry in sorted(islice(folder.iterdir(), MAX_LISTED)):
        if entry.is_dir() and entry.name.isprintable() and not entry.name.startswith("."):
            yield entry


def _is_model(folder: Path) -> bool:
    names = [entry.name for entry in islice(folder.iterdir(), MAX_LISTED)]
    tensors = any(name.endswith((".safetensors", ".bin")) for name in names)
    return any(name.endswith(".gguf") for name in names) or (tensors and "config.json" in names)
