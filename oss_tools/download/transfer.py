"""Fetches files in segments, several at a time, into files that a later run can go on with, and verifies them.

huggingface_hub (2.4) begins a file anew after an interruption, so the transfer is our own. `NAME.incomplete` holds the
bytes where they belong, `NAME.progress` how far each segment has come; a count is written after its bytes, so a killed
process leaves nothing that claims more than there is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.files import full_disk_is_no_room, write_at
from oss_tools.download.failures import Changed, Patience, Transient
from oss_tools.download.web import Web, pieces_between
from oss_tools.errors import BadRequest, VerificationFailed

SEGMENT = 128 << 20  # bytes that one request asks for
HASH_PIECE = 4 << 20
PROGRESS = 4096  # bytes of one answer after which further tries are worth it
Arrived = Callable[["Job", str], None]  # a job whose file has its final place, and its sha256
Advance = Callable[[str, int], None]  # a file's path, and bytes just received (negative: to be fetched again)


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Attributes:
        path: its name, with `/` between folders, relative to where the checkpoint is to lie.
        size: in bytes.
        url: where it is.
        sha256: of its content as published, or "".
        git_oid: its git blob id (sha1) as published, or "".
        etag: names this version of it, or "".
        ranges: whether the server gives stretches of it.
    """

    path: str
    size: int
    url: str
    sha256: str = ""
    git_oid: str = ""
    etag: str = ""
    ranges: bool = True

    @property
    def blob(self) -> str:
        """A name for its content, as the hub's cache uses it."""
        return self.sha256 or self.git_oid or hashlib.sha256(f"{self.url}\n{self.etag}\n{self.size}".encode()).hexdigest()

    @property
    def verified_by(self) -> str:
        """What published checksum its content is held against: sha256, git (a sha1), or nothing."""
        return "sha256" if self.sha256 else "git" if self.git_oid else "nothing"


@dataclass(frozen=True)
class Job:
    """A file on its way to a place.

    Attributes:
        file: what to fetch.
        incomplete: where its bytes are gathered; its progress lies beside it.
        final: where it is moved when it is complete and verified.
    """

    file: RemoteFile
    incomplete: Path
    final: Path

    @property
    def progress(self) -> Path:
        return self.incomplete.with_suffix(".progress")


class Partial:
    """An incomplete file, open and locked: which segments it has, and how far they are.

    Attributes:
        done: bytes of each segment that are there.
        sha256: of the whole, once `fault` has read it.
    """

    def __init__(self, job: Job) -> None:
        """Opens or begins it. Raises BadRequest if another process is at it, NoRoom."""
        self.job = job
        self.sha256 = ""
        self.segment = SEGMENT if job.file.ranges else max(job.file.size, 1)
        self.count = max(-(-job.file.size // self.segment), 1)
        job.incomplete.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_is_no_room(job.incomplete), contextlib.ExitStack() as opened:
            self._data = _opened(job.incomplete)
            opened.callback(os.close, self._data)
            try:
                fcntl.flock(self._data, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BadRequest(f"{job.file.path}: another process is downloading it; wait for it, or end it") from None
            self._counts = _opened(job.progress)
            opened.callback(os.close, self._counts)
            self.done = self._known_counts()
            self._open = opened.pop_all()

    @property
    def _head(self) -> bytes:
        """Names what the counts are about: 32 bytes."""
        return hashlib.sha256(f"{self.job.file.blob} {self.job.file.size} {self.segment}".encode()).digest()

    def _known_counts(self) -> np.ndarray:
        stored = os.pread(self._counts, 32 + 8 * self.count, 0)
        if stored[:32] == self._head and len(stored) == 32 + 8 * self.count:
            counts = np.frombuffer(stored, "<i8", offset=32).copy()
            lengths = [self.length(i) for i in range(self.count)]
            if np.all((counts >= 0) & (counts <= lengths)) and self._reaches(counts):
                return counts
        return self.restart()

    def _reaches(self, counts: np.ndarray) -> bool:
        """Whether the data file is as long as the counts say."""
        ends = [i * self.segment + int(n) for i, n in enumerate(counts) if n]
        return os.fstat(self._data).st_size >= max(ends, default=0)

    def restart(self) -> np.ndarray:
        """Forgets everything."""
        os.ftruncate(self._counts, 0)
        os.ftruncate(self._data, 0)
        self.done = np.zeros(self.count, np.int64)
        write_at(self._counts, 0, np.frombuffer(self._head + self.done.tobytes(), np.uint8), self.job.progress)
        return self.done

    def length(self, index: int) -> int:
        return min(self.segment, self.job.file.size - index * self.segment)

    def write(self, index: int, data: bytes) -> None:
        """Appends to a segment. Raises NoRoom."""
        offset = index * self.segment + int(self.done[index])
        write_at(self._data, offset, np.frombuffer(data, np.uint8), self.job.incomplete)
        self.done[index] += len(data)
        count = self.done[index : index + 1].astype("<i8")
        write_at(self._counts, 32 + 8 * index, count, self.job.progress)

    @property
    def received(self) -> int:
        return int(self.done.sum())

    def fault(self) -> str:
        """What differs between the file on disk and what was published, in a few words; "" if nothing does."""
        self.sha256, git_oid = digests(
            self.job.incomplete, want_git=bool(self.job.file.git_oid and not self.job.file.sha256)
        )
        if self.job.file.sha256 and self.sha256 != self.job.file.sha256:
            return f"sha256 {self.sha256[:12]}…, published is {self.job.file.sha256[:12]}…"
        if not self.job.file.sha256 and self.job.file.git_oid and git_oid != self.job.file.git_oid:
            return f"git id {git_oid[:12]}…, published is {self.job.file.git_oid[:12]}…"
        return ""

    def finish(self) -> None:
        """Flushes the file to disk and gives it its name. Raises NoRoom."""
        with full_disk_is_no_room(self.job.incomplete):
            os.ftruncate(self._data, self.job.file.size)
            os.fsync(self._data)
            self.job.final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.job.incomplete, self.job.final)
            self.job.progress.unlink(missing_ok=True)

    def discard(self) -> None:
        self.job.incomplete.unlink(missing_ok=True)
        self.job.progress.unlink(missing_ok=True)

    def close(self) -> None:
        self._open.close()


def _opened(path: Path) -> int:
    """A file of our own for reading and writing. Raises BadRequest for a link, through which it would be another's."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadRequest(f"{path}: a link, where a download keeps a file of its own; remove it") from None
        raise


class Transfer:
    """Fetches jobs with several connections at a time."""

    def __init__(self, web: Web, connections: int, advance: Advance, arrived: Arrived) -> None:
        """`arrived` is called for one file at a time."""
        self.web, self.connections, self.advance, self.arrived, self.say = web, connections, advance, arrived, web.say
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self, jobs: list[Job]) -> None:
        """Fetches all. Files that are complete have arrived even if another fails.

        Raises VerificationFailed naming each file that was damaged twice, Unreachable, BadSource, NoRoom, BadRequest.
        """
        with ThreadPoolExecutor(self.connections) as streams, ThreadPoolExecutor(max(len(jobs), 1)) as files:
            running = [files.submit(self._fetch, job, streams) for job in jobs]
            try:
                _first_error(running)
            finally:
                self._stop.set()  # after an error, or Ctrl-C, the others stop at their next piece
        faults = [future.result() for future in running]
        damaged = [f"{job.file.path}: {fault}" for job, fault in zip(jobs, faults, strict=True) if fault]
        if damaged:
            raise VerificationFailed("damaged on arrival, twice: " + "; ".join(damaged))

    def _fetch(self, job: Job, streams: ThreadPoolExecutor) -> str:
        """What is wrong with a file that was damaged twice; "" for one that arrived."""
        with contextlib.closing(Partial(job)) as partial:
            for last in (False, True):
                try:
                    _first_error([streams.submit(self._fetch_segment, partial, i) for i in range(partial.count)])
                    if self._stop.is_set():
                        return ""
                    fault = partial.fault()
                except Changed as error:
                    fault = str(error)
                if not fault:
                    with self._lock:
                        partial.finish()
                        self.arrived(job, partial.sha256)
                    return ""
                if not last:
                    self.say(f"{job.file.path}: damaged on arrival ({fault}); fetching it again")
                    self.advance(job.file.path, -partial.received)
                    partial.restart()
            partial.discard()
            return fault

    def _fetch_segment(self, partial: Partial, index: int) -> None:
        patience = Patience(partial.job.file.path, self.say, self._stop.wait)
        first, stop = index * partial.segment, index * partial.segment + partial.length(index)
        while partial.done[index] < partial.length(index) and not self._stop.is_set():
            start = first + int(partial.done[index])
            try:
                self._receive(partial, index, start, stop, patience)
            except Transient as failure:
                patience.wait(failure)

    def _receive(self, partial: Partial, index: int, start: int, stop: int, patience: Patience) -> None:
        """One request: as much of [start, stop) as comes."""
        file, received = partial.job.file, 0
        with self.web.open(file.url, start, stop if file.ranges else None, file.etag) as answer:
            if answer.size is not None and answer.size != file.size:
                raise Changed(f"the server has {answer.size} bytes, {file.size} were announced")
            if file.etag and answer.etag != file.etag:
                raise Changed("it has changed on the server since the transfer began")
            for data in pieces_between(answer.pieces, answer.start, start, stop):
                if self._stop.is_set():
                    return
                partial.write(index, data)
                received += len(data)
                if received >= PROGRESS:  # a byte now and then is none
                    patience.progress()
                self.advance(file.path, len(data))
        if partial.done[index] < partial.length(index):
            raise Transient("the connection ended early")


def _first_error(futures: list[Future]) -> None:
    """Waits for all, or for the first failure, which it raises."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


def digests(path: Path, want_git: bool = False, advance: Callable[[int], None] = lambda nbytes: None) -> tuple[str, str]:
    """sha256 of a file, and its git blob id if wanted, else ""."""
    sha256, git = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        if want_git:
            git.update(f"blob {os.fstat(file.fileno()).st_size}\0".encode())
        while piece := file.read(HASH_PIECE):
            sha256.update(piece)
            if want_git:
                git.update(piece)
            advance(len(piece))
    return sha256.hexdigest(), git.hexdigest() if want_git else ""
