"""What a user calls a model: a short name, `owner/name[@REVISION][:QUANTIZATION]`, a page of the hub, or an address."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from oss_tools.download.addresses import check_address, same_origin, shown, split
from oss_tools.download.registry import Published, published
from oss_tools.errors import BadSource
from oss_tools.guesses import near_names

REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)
QUANTIZATION = re.compile(r"[\w.-]{1,96}", re.ASCII)
OLLAMA = re.compile(r"(ollama://.*|(registry\.ollama\.ai/)?[\w.-]+(/[\w.-]+)?:[\w.-]+)", re.ASCII)
IN_REPOSITORY = re.compile(
    r"(?:hf://|hf\.co/|huggingface\.co/)([^/@:]+/[^/@:]+)/(?!blob/|resolve/|tree/)(.+\.(?:gguf|safetensors))"
)
HUBS = ("https://huggingface.co/", "https://hf.co/", "hf.co/", "huggingface.co/", "hf://")  # as other programs write them


@dataclass(frozen=True)
class Wanted:
    """A name, understood: a repository with a revision, or an address.

    Attributes:
        repo: `owner/name`, or "" for an address.
        revision: the one that was named, else that of the short name, else main.
        named: whether the user named the revision.
        quantization: which GGUF model of the repository, or "".
        published: its entry among the short names, or None.
    """

    repo: str = ""
    revision: str = ""
    address: str = ""
    published: Published | None = None
    quantization: str = ""
    named: bool = False

    @property
    def command(self) -> str:
        """What fetches it."""
        name = self.published.name if self.published and not self.quantization else self.repo
        quantization = f":{self.quantization}" if self.quantization else ""
        return f"oss-tools download {name}{quantization}{f' --revision {self.revision}' if self.named else ''}"


def understand(name: str, revision: str, endpoint: str) -> Wanted:
    """What a name means. `revision` overrides that of the name. Raises BadSource."""
    known = published()
    _check_revision(revision)
    if name.lower() in known:
        entry = known[name.lower()]
        return Wanted(entry.repo, revision or entry.revision or "main", published=entry, named=bool(revision))
    wanted = _page(name, endpoint) or _repository(_without_hub(name))
    if wanted:
        revision = revision or wanted.revision
        _check_revision(revision)
        entry_of = next((p for p in known.values() if p.repo == wanted.repo), None)
        return replace(wanted, revision=revision or "main", published=entry_of, named=bool(revision))
    if file := IN_REPOSITORY.fullmatch(name):
        return Wanted(address=f"{endpoint}/{file[1]}/resolve/main/{file[2]}")
    if "://" in name and split(name).scheme == "file":
        return Wanted(address=name)
    if "://" not in name or OLLAMA.fullmatch(name):
        raise BadSource(_not_understood(name, known))
    check_address(name)
    return Wanted(address=_raw(name, endpoint))


def _check_revision(revision: str) -> None:
    """Raises BadSource for what git would not take as a name, and a disk might take for a way out of the cache."""
    parts = revision.split("/")
    if revision and (not REVISION.fullmatch(revision) or {"", "."} & set(parts) or ".." in revision):
        raise BadSource(f"{revision[:200]!r} is no revision: expected a branch, a tag or a commit")


def _without_hub(name: str) -> str:
    return next((name.removeprefix(hub).rstrip("/") for hub in HUBS if name.startswith(hub)), name)


def _repository(text: str) -> Wanted | None:
    """Of `owner/name`, with `@REVISION` and `:QUANTIZATION` if they are there."""
    rest, _, quantization = text.partition(":")
    repo, at, revision = rest.partition("@")
    fine = REPO.fullmatch(repo) and not set(repo.split("/")) & {".", ".."} and bool(at) == bool(revision)
    if not fine or (":" in text and not QUANTIZATION.fullmatch(quantization)):
        return None
    return Wanted(repo, revision, quantization=quantization)


def _page(address: str, endpoint: str) -> Wanted | None:
    """Of a repository's page on the hub, at a revision or not."""
    path = _on_hub(address, endpoint)
    repo, _, revision = (path or "").strip("/").partition("/tree/")
    return Wanted(repo, revision) if REPO.fullmatch(repo) and not set(repo.split("/")) & {".", ".."} else None


def _raw(address: str, endpoint: str) -> str:
    """The address of a file itself, where one of its page on the hub was given."""
    path = _on_hub(address, endpoint)
    match = re.fullmatch(r"/([^/]+/[^/]+)/blob/(.+)", path or "")
    return f"{endpoint}/{match[1]}/resolve/{match[2]}" if match else address


def _on_hub(address: str, endpoint: str) -> str | None:
    """The path of an address that lies on the hub."""
    if "://" not in address:
        return None
    hubs = (endpoint, *(hub for hub in HUBS if hub.startswith("https://")))
    return split(address).path if any(same_origin(address, hub) for hub in hubs) else None


def _not_understood(name: str, known: dict[str, Published]) -> str:
    near = near_names(name.replace(":", "-"), known)
    guess = f"; did you mean {' or '.join(near)}?" if near else ""
    if OLLAMA.fullmatch(name):
        return (
            f"'{shown(name)}' is a name of Ollama's, whose registry is not read{guess or '; name the repository, owner/name'} "
            f"(`ollama show {name.removeprefix('ollama://')} --modelfile` says in FROM where Ollama keeps the file: its path "
            "is a MODEL here)"
        )
    return f"'{shown(name)}' is no repository (owner/name), no https:// or file:// address, and none of {', '.join(known)}{guess}"
