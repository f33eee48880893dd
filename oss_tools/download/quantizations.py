"""Which GGUF models lie beside each other, at the top or in folders of their own, and which of them a name means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oss_tools.guesses import near_names
from oss_tools.sizes import format_size

PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
NO_MODEL = re.compile(r"(.*/)?(mmproj[^/]*|[^/]*imatrix[^/]*)", re.IGNORECASE)  # projectors of images; importance matrices
TAG = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|NVFP4|BF16|F16|FP16|F32)(?:-Q\d\w*)?)(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
LISTED = 40  # models in a message


@dataclass(frozen=True)
class Model:
    """A GGUF model among others.

    Attributes:
        paths: its files, parts in order.
        nbytes: of all of them.
    """

    paths: tuple[str, ...]
    nbytes: int

    @property
    def pattern(self) -> str:
        """A pattern that fits its files."""
        return PART.sub("*.gguf", self.paths[0])

    @property
    def tag(self) -> str:
        """The quantization in its name (Q4_K_M, BF16), as the name spells it; "" if none is."""
        found = TAG.findall(self.paths[0].rpartition("/")[2]) or TAG.findall(self.paths[0])
        return found[-1] if found else ""

    @property
    def missing_parts(self) -> list[str]:
        """Parts of a split model that its name counts and that are not there."""
        match = PART.search(self.paths[0])
        if not match:
            return []
        stem, count = self.paths[0][: match.start()], int(match[2])
        wanted = (f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
        return [path for path in wanted if path not in self.paths]


def models_among(sizes: Mapping[str, int]) -> list[Model]:
    """The GGUF models among files, by name. `sizes`: bytes by path, with `/` between folders."""
    files: dict[str, list[str]] = {}
    for path in sorted(sizes):
        if path.lower().endswith(".gguf") and not NO_MODEL.fullmatch(path):
            match = PART.search(path)
            files.setdefault(f"{path[: match.start()]} of {match[2]}" if match else path, []).append(path)
    return [Model(tuple(paths), sum(sizes[p] for p in paths)) for paths in files.values()]


def named(models: Sequence[Model], name: str) -> list[Model]:
    """The models that a name means, in whatever case: a quantization (q4_k_m), a folder, or a file's name."""
    folded = name.lower().rstrip("/")
    exact = [m for m in models if folded in (m.tag.lower(), *m.paths[0].lower().split("/"), m.paths[0].lower())]
    within = re.compile(rf"(?<![a-z0-9]){re.escape(folded)}(?![a-z0-9_])")
    return exact or [m for m in models if within.search(m.paths[0].lower())]


def near_misses(models: Sequence[Model], name: str) -> list[str]:
    """Quantizations, or files where none is in their names, that are spelt like a name."""
    return near_names(name.strip("*/"), [m.tag or m.pattern for m in models], likeness=0.5)


def listing(models: Sequence[Model]) -> str:
    """The models by name, with their sizes."""
    shown = [f"{m.pattern} ({format_size(m.nbytes)})" for m in models[:LISTED]]
    more = f" and {len(models) - LISTED} more" if len(models) > LISTED else ""
    return ", ".join(shown) + more
