"""Which files of a repository are fetched: what a checkpoint consists of, and never anything that runs code when opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from oss_tools.checkpoints.files import is_plain_name
from oss_tools.checkpoints.index import INDEX, SINGLE
from oss_tools.checkpoints.json_files import parse_json
from oss_tools.checkpoints.templates import FOLDER as TEMPLATES
from oss_tools.download.layout import ORIGINAL, folded, is_ours
from oss_tools.download.quantizations import listing, models_among, named, near_misses
from oss_tools.download.transfer import RemoteFile
from oss_tools.errors import BadSource

WANTED = re.compile(
    r".+\.(safetensors|gguf|json|jinja)|tokenizer\.model|(vocab|merges)\.txt|"
    r"(LICEN[CS]E|NOTICE|USAGE_POLICY|COPYING|README)[\w.-]*",
    re.IGNORECASE,
)
DANGEROUS = (
    ".bin",
    ".pt",
    ".pth",
    ".pickle",
    ".pkl",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".npy",
    ".npz",
    ".py",
    ".so",
    ".sh",
    ".exe",
)
TENSORS = (".safetensors", ".gguf")
CONTAINERS = ("hf", "original", "gguf")
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
MAX_DEPTH = 16
ODD = re.compile(r'[<>"|?*]|[. ]$|^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)', re.IGNORECASE)  # no names on Windows
MAX_INDEX = 64 << 20  # bytes
ReadFile = Callable[[RemoteFile], bytes]


def choose(
    files: Sequence[RemoteFile],
    container: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    read: ReadFile | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[str, list[RemoteFile]]:
    """The container and the files to fetch, with their paths at the destination.

    Args:
        files: all of the repository.
        container: hf, original or gguf; "" takes the first of these that is there.
        include: patterns, or names of quantizations; if there are any, only files that they mean (of those that may be fetched
            at all).
        exclude: patterns; files that match one are left out.
        read: reads a small file, the index that says which shards belong together; None takes all shards.
        say: is told of small files that are left out because their names cannot be kept.

    Raises BadSource if nothing is left, several GGUF models are, or a file that is wanted has a name that cannot be kept.
    """
    offered = [f for f in files if not any(_matches(f.path, pattern) for pattern in exclude)]
    if include:
        found = _including(offered, include)
        check_paths(found)
        _check_unlike_others(found, offered)
        kind = container or next((k for k in CONTAINERS if _tensors(found, k)), "hf")
    else:
        kind, found = _checkpoint(offered, container, read, say)
    if not found:
        raise BadSource("no file is left to fetch; check --include and --exclude")
    if kind == "gguf":
        _check_one_model(found)
    return kind, found


def check_paths(files: Sequence[RemoteFile]) -> None:
    """Raises BadSource if a file's name cannot be kept, or two files would lie in one place."""
    for file in files:
        if fault := _fault_of(file.path):
            raise BadSource(
                f"the repository lists a file named {file.path[:120]!r}, {fault}; nothing is fetched (--exclude leaves it out)"
            )
    _check_unlike_others(files, files)
    taken = {folded(file.path): file.path for file in files}
    for file in files:
        parts = file.path.split("/")
        above = (taken.get(folded("/".join(parts[:i]))) for i in range(1, len(parts)))
        if twice := next(filter(None, above), ""):
            raise BadSource(f"the repository lists {twice[:120]!r} twice, as a file and as a folder; nothing is fetched")


def _check_unlike_others(files: Sequence[RemoteFile], others: Sequence[RemoteFile]) -> None:
    """Raises BadSource if a file has the name of another one, but for case and the forms of Unicode."""
    names: dict[str, list[str]] = {}
    for other in others:
        names.setdefault(folded(other.path), []).append(other.path)
    for file in files:
        if len(same := names[folded(file.path)]) > 1:
            one, twin = sorted(same)[:2]
            twice = f"{one[:120]!r} twice" if one == twin else f"{one[:120]!r} and {twin[:120]!r}, one file on many disks"
            raise BadSource(f"the repository lists {twice}; nothing is fetched (--exclude leaves one out)")


def _fault_of(path: str) -> str:
    """Why a file of this name cannot be kept, in a clause; "" if it can."""
    parts = path.split("/")
    if path.startswith(("/", "~")) or {"", ".", ".."} & set(parts) or "\\" in path:
        return "which leaves its folder"
    if is_ours(path):
        return "where this program keeps what it knows of a download"
    if len(parts) > MAX_DEPTH or not all(is_plain_name(part) and not ODD.search(part) for part in parts):
        return "which no file can have everywhere: too long, too deep, reserved, or with characters that are not for names"
    return ""


def _checkpoint(
    files: Sequence[RemoteFile], container: str, read: ReadFile | None, say: Callable[[str], None]
) -> tuple[str, list[RemoteFile]]:
    """The container, and all that a checkpoint in it consists of. Small files whose names cannot be kept are left out."""
    kind = container or next((k for k in CONTAINERS if _tensors(files, k)), "")
    if not kind or not _tensors(files, kind):
        has = ", ".join(k for k in CONTAINERS if _tensors(files, k)) or "no .safetensors and no .gguf files"
        raise BadSource(f"the repository has no checkpoint{f' in container {kind}' if kind else ''}; it has {has}")
    tensors = _belonging(files, kind, read)
    found = [*tensors, *_beside(files, kind)]
    check_paths(tensors)
    for file in found:
        if _fault_of(file.path):
            say(f"{file.path[:120]!r} is left out: its name cannot be kept")
    found = [f for f in found if not _fault_of(f.path)]
    check_paths(found)
    listed = set(files)  # some of what was found gets another place
    _check_unlike_others([f for f in found if f in listed], files)
    return kind, found


def _tensors(files: Sequence[RemoteFile], kind: str) -> list[RemoteFile]:
    """The files that may hold tensors in a container: at the top, in original/, or, of GGUF, in any folder. `consolidated` files
    are a second copy in another layout."""
    if kind == "gguf":
        paths = {path for model in models_among({f.path: f.size for f in files}) for path in model.paths}
        found = [f for f in files if f.path in paths]
        return [f for f in found if not _fault_of(f.path)] or found
    top = ORIGINAL if kind == "original" else ""
    found = [f for f in files if f.path.startswith(top) and f.path.endswith(".safetensors")]
    found = [f for f in found if "/" not in f.path.removeprefix(top)]
    return [f for f in found if not f.path.startswith("consolidated")] or found


def _belonging(files: Sequence[RemoteFile], kind: str, read: ReadFile | None) -> list[RemoteFile]:
    """Of the files that may hold tensors those that belong together, with their index: what readers and transformers open.

    That is model.safetensors, else what the index names, else all. GGUF files are told apart by name.
    """
    found = _tensors(files, kind)
    if kind == "gguf":
        return found
    top = ORIGINAL if kind == "original" else ""
    single = [f for f in found if f.path == SINGLE]
    index = next((f for f in files if f.path == top + INDEX), None)
    if single or index is None:
        return single or found
    if _is_one_set([f.path for f in found]):
        return [*found, index]
    names = _named_shards(read(index), index.path) if read and index.size <= MAX_INDEX else set()
    if missing := names - {f.path.removeprefix(top) for f in files}:
        raise BadSource(
            f"{index.path} names {len(missing)} files that the repository lacks (the first is {min(missing)[:120]!r}): it is of "
            "another build, and what it names cannot be opened; nothing is fetched"
        )
    return [*(f for f in files if f.path.removeprefix(top) in names), index] if names else [*found, index]


def _is_one_set(paths: Sequence[str]) -> bool:
    """Whether files are numbered as the shards of one checkpoint, all of them: then the index need not be asked."""
    matches = [SHARD.fullmatch(path) for path in paths]
    sets = {(m[1], m[3]) for m in matches if m}
    numbers = {int(m[2]) for m in matches if m}
    return all(matches) and len(sets) == 1 and numbers == set(range(1, int(sets.pop()[1]) + 1))


def _named_shards(index: bytes, where: str) -> set[str]:
    """The files that an index names; none where it names nothing. Raises BadCheckpoint if it is no JSON."""
    weight_map = parse_json(index, where).get("weight_map")
    return set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()


def _beside(files: Sequence[RemoteFile], kind: str) -> list[RemoteFile]:
    """The small files of a checkpoint: those of the top folder and further chat templates, which original/ gets too."""
    wanted = [f for f in files if _is_wanted(f) and not f.path.lower().endswith((*TENSORS, ".index.json"))]
    top = [f for f in wanted if "/" not in f.path or re.fullmatch(rf"{TEMPLATES}/[^/]+\.jinja", f.path)]
    if kind != "original":
        return top
    inside = [f for f in wanted if f.path.startswith(ORIGINAL) and f.path.count("/") == 1]
    names = {f.path.removeprefix(ORIGINAL) for f in inside} | {"config.json"}
    return [*inside, *(replace(f, path=ORIGINAL + f.path) for f in top if f.path not in names)]


def _including(files: Sequence[RemoteFile], include: Sequence[str]) -> list[RemoteFile]:
    """The files that patterns mean: as they are written, else in whatever case, else as names of quantizations."""
    allowed = [f for f in files if _may_be_fetched(f)]
    models = models_among({f.path: f.size for f in allowed})
    paths: set[str] = set()
    for pattern in include:
        exact = {f.path for f in allowed if _matches(f.path, pattern)}
        folded = {f.path for f in allowed if _matches(f.path.lower(), pattern.lower())}
        paths |= exact or folded or {path for model in named(models, pattern) for path in model.paths}
    if not paths:
        refused = [f.path for f in files if any(_matches(f.path, p) for p in include) and f.path.lower().endswith(DANGEROUS)]
        if refused:
            raise BadSource(f"{refused[0]}: files of this kind can run code when they are opened, and are never fetched")
        near = list(dict.fromkeys(name for pattern in include for name in near_misses(models, pattern)))
        guess = f"did you mean {' or '.join(near)}?" if near else f"there are {listing(models)}" if models else ""
        none = f"no file is left to fetch: none matches --include {' '.join(include)}"
        raise BadSource(f"{none}; {guess or 'check --include and --exclude'}")
    return [f for f in allowed if f.path in paths]


def _may_be_fetched(file: RemoteFile) -> bool:
    """Not what runs code when it is opened, nor another download's manifest."""
    return not file.path.lower().endswith(DANGEROUS) and not is_ours(file.path)


def _is_wanted(file: RemoteFile) -> bool:
    return bool(WANTED.fullmatch(file.path.rpartition("/")[2])) and _may_be_fetched(file)


def _matches(path: str, pattern: str) -> bool:
    """As the hub's own patterns: `*` crosses folders, a trailing / means everything below."""
    return fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)


def _check_one_model(files: Sequence[RemoteFile]) -> None:
    models = models_among({f.path: f.size for f in files})
    if len(models) > 1:
        tag = next((m.tag for m in models if m.tag), "")
        example = f" (--include {tag} does)" if tag and [m.tag for m in models].count(tag) == 1 else ""
        raise BadSource(f"the repository has {len(models)} GGUF models; name one with --include{example}: {listing(models)}")
