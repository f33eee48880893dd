"""What a server offers of what a user wants: the files of a hub's repository, or at an address."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from oss_tools.checkpoints.files import is_plain_name
from oss_tools.checkpoints.index import INDEX, SINGLE
from oss_tools.checkpoints.json_files import parse_json
from oss_tools.download.addresses import shown
from oss_tools.download.failures import Missing, Patience, Transient
from oss_tools.download.names import Wanted, understand
from oss_tools.download.registry import Published
from oss_tools.download.repositories import commit_of, files_of
from oss_tools.download.transfer import RemoteFile
from oss_tools.download.web import Web
from oss_tools.errors import BadSource

__all__ = ["Source", "Wanted", "look_up", "probe", "understand"]

SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
COMPANIONS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "README.md",
)
MAX_INDEX = 64 << 20
MAX_PARTS = 1000


@dataclass(frozen=True)
class Source:
    """Files that belong together.

    Attributes:
        name: what the user called it, resolved: `owner/name`, or an address.
        repo: `owner/name` on a hub, or "".
        revision: the branch, tag or commit that was asked for; "" for an address.
        commit: the commit of the hub's repository, or "".
        files: all that it offers.
        published: its entry in the registry, or None.
    """

    name: str
    repo: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    published: Published | None = None


def look_up(wanted: Wanted, web: Web) -> Source:
    """Asks the server what files there are. Raises BadSource, Unreachable."""
    if not wanted.repo:
        return address_source(wanted.address, web)
    where = f"{wanted.repo}, revision {wanted.revision}"
    commit = commit_of(wanted.repo, wanted.revision, where, web)
    files = tuple(files_of(wanted.repo, commit, where, web))
    return Source(wanted.repo, wanted.repo, wanted.revision, commit, files, wanted.published)


# ---- an address -----------------------------------------------------------------------------------------------------


def address_source(address: str, web: Web) -> Source:
    """The files at an address: a .gguf (all its parts), a .safetensors with config.json beside it, or a folder of those
    with an index."""
    base, _, name = address.partition("?")[0].rpartition("/")
    name = unquote(name)
    folder = base + "/"
    if name.endswith(".gguf"):
        if not is_plain_name(name):
            raise BadSource(f"{shown(address)}: the file's name {name[:80]!r} cannot be kept")
        return Source(shown(address), "", "", "", tuple(_parts(address, folder, name, web)))
    if name.endswith(".safetensors") and is_plain_name(name):
        files = [probe(address, name, web), *_companions(folder, web)]
    elif name.endswith(".index.json") or not name or "." not in name:
        folder = folder if name.endswith(".index.json") or not name else f"{base}/{name}/"
        tensors = _indexed(folder, web) if name.endswith(".index.json") else _tensors(folder, web)
        files = [*tensors, *_companions(folder, web)]
    else:
        raise BadSource(f"{shown(address)}: expected a .gguf or .safetensors file, an index, or a folder (ending in /)")
    return Source(shown(address), "", "", "", tuple(files))


def _parts(address: str, folder: str, name: str, web: Web) -> list[RemoteFile]:
    match = SPLIT.fullmatch(name)
    if not match:
        return [probe(address, name, web)]
    if not 1 <= int(match[3]) <= MAX_PARTS:
        raise BadSource(f"{name}: {match[3]} parts, more than the {MAX_PARTS} accepted")
    names = [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]
    return [probe(folder + quote(part), part, web) for part in names]


def _indexed(folder: str, web: Web) -> list[RemoteFile]:
    """The index of a folder, and the files that it names."""
    index = probe(folder + INDEX, INDEX, web)
    if index.size > MAX_INDEX:
        raise BadSource(f"{folder + INDEX}: {index.size} bytes, more than an index has")
    data, _ = web.read(index.url, 0, index.size)
    names = parse_json(data, folder + INDEX).get("weight_map")
    shards = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    if not shards or len(shards) > MAX_PARTS or not all(is_plain_name(s) and s.endswith(".safetensors") for s in shards):
        raise BadSource(f"{folder + INDEX}: names no shards, too many, or some outside its folder; nothing is fetched")
    return [index, *(probe(folder + quote(shard), shard, web) for shard in shards)]


def _tensors(folder: str, web: Web) -> list[RemoteFile]:
    """The files that hold a folder's tensors: one file, where there is one, as readers and transformers have it; else those of
    an index."""
    try:
        return [probe(folder + SINGLE, SINGLE, web)]
    except Missing:
        return _indexed(folder, web)


def _companions(folder: str, web: Web) -> list[RemoteFile]:
    found = []
    for name in COMPANIONS:
        try:
            found.append(probe(folder + name, name, web))
        except Missing:
            if name == "config.json":
                raise
    return found


def probe(url: str, path: str, web: Web) -> RemoteFile:
    """What a server says of a file, from a request of one byte: its size, version, published sha256. Raises Missing,
    BadSource, Unreachable."""
    patience = Patience(url, web.say)
    while True:
        try:
            with web.open(url, 0, 1) as answer:
                if answer.size is None:
                    raise BadSource(f"{shown(url)}: the server does not say how long the file is")
                etag = "" if answer.sha256 else answer.etag
                return RemoteFile(path, answer.size, url, answer.sha256, etag=etag, ranges=answer.ranges)
        except Transient as failure:
            patience.wait(failure)
