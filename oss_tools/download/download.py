"""The download of a checkpoint: what is chosen, what is still missing, the transfer, the manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oss_tools.download import manifest
from oss_tools.download.layout import ORIGINAL, cache_folder
from oss_tools.download.places import Cache, Folder, Place
from oss_tools.download.quantizations import models_among
from oss_tools.download.select import choose
from oss_tools.download.sources import Source
from oss_tools.download.transfer import Advance, Job, Partial, RemoteFile, Transfer, digests
from oss_tools.download.web import Web


@dataclass(frozen=True)
class Plan:
    """A download, decided before the first byte.

    Attributes:
        source: where from.
        container: what it is.
        files: what is wanted.
        place: where to.
        present: paths of files that are there already and known to be right.
    """

    source: Source
    container: str
    files: tuple[RemoteFile, ...]
    place: Place
    present: frozenset[str]

    @property
    def missing(self) -> list[RemoteFile]:
        return [f for f in self.files if f.path not in self.present]

    @property
    def nbytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def model(self) -> Path:
        """The path to give to other commands afterwards."""
        if self.container == "original":
            return self.place.root / ORIGINAL.rstrip("/")
        models = models_among({f.path: f.size for f in self.files})
        if self.container == "gguf" and models:
            return self.place.root / models[0].paths[0]
        tensors = [f.path for f in self.files if f.path.endswith(".safetensors")]
        if not self.source.repo and len(tensors) == 1:
            return self.place.root / tensors[0]
        return self.place.root

    @property
    def manifest_path(self) -> Path:
        return self.place.root / manifest.NAME


def make_plan(
    source: Source,
    *,
    web: Web | None = None,
    to: Path | None = None,
    container: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    compare: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Chooses files and place. Files that lie there already are read and compared, unless the manifest knows them.

    Args:
        source: what the server offers.
        web: reads the index of a checkpoint in shards; without it all shards are taken.
        to: a folder; None for the hub's cache, or, for an address, the current folder.
        container, include, exclude: as `choose` has them.
        compare: whether to look at what lies there at all; without it every file counts as missing.
        say: is told if files are read to see whether they are right, and of files that are left out.

    Raises BadSource, Unreachable.
    """

    place: Place
    if source.repo and to is None:
        place = Cache(cache_folder(), source.repo, source.revision, source.commit)
    else:
        place = Folder(to or Path())

    def read(file: RemoteFile) -> bytes:
        if place.is_here(file) and _is_right(file, place, {}, say):
            return place.job(file).final.read_bytes()
        return web.read(file.url, 0, file.size)[0] if web and file.size else b""

    everything = [] if source.repo else ["*"]  # an address was looked up file by file
    kind, files = choose(source.files, container, include or everything, exclude, read if web else None, say)
    known = manifest.read(place.root) if compare else {}
    present = frozenset(f.path for f in files if compare and place.is_here(f) and _is_right(f, place, known, say))
    return Plan(source, kind, tuple(files), place, present)


def _is_right(file: RemoteFile, place: Place, known: dict[str, manifest.Entry], say: Callable[[str], None]) -> bool:
    """Whether the file that lies there has the published content."""
    entry = known.get(file.path)
    if file.sha256 and entry and (entry.bytes, entry.sha256) == (file.size, file.sha256):
        return True
    if file.verified_by == "nothing":
        return False
    if file.size > 100 << 20:
        say(f"{file.path} is there already; reading it to see whether it is right")
    sha256, git_oid = digests(place.job(file).final, want_git=bool(file.git_oid))
    return sha256 == file.sha256 if file.sha256 else git_oid == file.git_oid


def remaining_bytes(plan: Plan) -> dict[str, int]:
    """Bytes still to be fetched, by path, after what an interrupted run left."""
    left = {}
    for job in _jobs(plan):
        left[job.file.path] = job.file.size
        if job.incomplete.exists():
            with contextlib.closing(Partial(job)) as partial:
                left[job.file.path] -= partial.received
    return left


def _jobs(plan: Plan) -> list[Job]:
    """A job for each content; files of equal content in the cache have one."""
    return list({job.incomplete: job for job in map(plan.place.job, plan.missing)}.values())


def carry_out(plan: Plan, web: Web, *, connections: int = 8, advance: Advance = lambda path, nbytes: None) -> Path:
    """Fetches what is missing, verifies it, writes the manifest. Returns the path of the model. Where nothing is missing, nothing
    need be written.

    Raises NoRoom, Unreachable, BadSource, VerificationFailed; the same call later goes on from there.
    """
    plan.place.require(plan.missing)
    if not plan.missing and plan.place.is_read_only:
        return plan.model
    facts = {"source": plan.source.name, "revision": plan.source.revision, "commit": plan.source.commit}
    known = manifest.read(plan.place.root)

    def record(files: list[RemoteFile], sha256: str) -> None:
        for file in files:
            plan.place.settle(file)
        entries = [_entry(f, sha256, plan.place, known) for f in files]
        manifest.write(plan.place.root, entries, {key: value for key, value in facts.items() if value})

    def arrived(job: Job, sha256: str) -> None:
        record([f for f in plan.missing if plan.place.job(f).final == job.final], sha256)

    record([f for f in plan.files if f.path in plan.present], "")
    Transfer(web, connections, advance, arrived).run(_jobs(plan))
    plan.place.finish()
    return plan.model


def _entry(file: RemoteFile, sha256: str, place: Place, known: dict[str, manifest.Entry]) -> manifest.Entry:
    """The manifest's entry of a file that arrived now (its sha256) or was there already ("")."""
    kept = known.get(file.path)
    if not sha256 and kept and kept.bytes == file.size and not file.sha256:
        return kept
    return manifest.entry(file, sha256 or file.sha256 or digests(place.job(file).final)[0])
