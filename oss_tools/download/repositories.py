"""A hub's repository: its commit, and the files that it lists, asked within limits.

The API is that of https://huggingface.co: /api/models/OWNER/NAME/revision/REVISION and /api/models/OWNER/NAME/tree/COMMIT,
the latter in pages. Each page is asked for at the listing's own address: of the `Link: <…>; rel="next"` in an answer only the
query is taken, so no server can send us elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from oss_tools.download.addresses import shown
from oss_tools.download.layout import COMMIT
from oss_tools.download.transfer import RemoteFile
from oss_tools.download.web import MAX_DOCUMENT, MAX_SIZE, SHA256, Web
from oss_tools.errors import BadSource

GIT_OID = re.compile(r"[0-9a-f]{40}")
NEXT = re.compile(r'<([^<>]*)>[^<>,]*;\s*rel="?next\b', re.IGNORECASE)
MAX_FILES = 10_000
MAX_PAGES = 200
MAX_LISTING = 64 << 20  # bytes of all pages
MAX_PATH = 4096  # characters of a file's name with its folders


def commit_of(repo: str, revision: str, where: str, web: Web) -> str:
    """The commit that a branch, tag or commit means. `where` is for messages. Raises Unreachable, Missing, BadSource."""
    info = web.document(f"{web.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}", where).content
    commit = info.get("sha") if isinstance(info, dict) else None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise BadSource(f"{where}: the server at {shown(web.endpoint)} names no commit; is it a hub?")
    return commit


def files_of(repo: str, commit: str, where: str, web: Web) -> Iterator[RemoteFile]:
    """The files of a repository at a commit, as the pages of the listing come. Raises Unreachable, BadSource."""
    listing, base = f"{web.endpoint}/api/models/{repo}/tree/{commit}", f"{web.endpoint}/{repo}/resolve/{commit}/"
    query, asked, nbytes, count = "recursive=true", set[str](), 0, 0
    while query:
        if query in asked:
            raise BadSource(f"{where}: the hub's listing comes back to a page that was there; nothing is fetched")
        asked.add(query)
        if len(asked) > MAX_PAGES:
            raise BadSource(f"{where}: the hub lists more than {MAX_PAGES} pages of files, more than are accepted")
        page = web.document(f"{listing}?{query}", where, min(MAX_DOCUMENT, MAX_LISTING - nbytes))
        nbytes += page.nbytes
        if not isinstance(page.content, list):
            raise BadSource(f"{where}: {shown(web.endpoint)} does not answer as a hub does: no list of files")
        for entry in page.content:
            count += 1
            if count > MAX_FILES:
                raise BadSource(f"{where}: the hub lists more than the {MAX_FILES} files and folders that are accepted")
            if not isinstance(entry, dict) or entry.get("type") != "directory":
                yield _listed(entry, base)
        query = _next_query(page.link, where)


def _listed(entry: Any, base: str) -> RemoteFile:
    entry = entry if isinstance(entry, dict) else {}
    path, lfs = entry.get("path"), entry.get("lfs")
    in_lfs = isinstance(lfs, dict)
    size, checksum = (lfs.get("size"), lfs.get("oid")) if in_lfs else (entry.get("size"), entry.get("oid"))
    fine = isinstance(path, str) and len(path) <= MAX_PATH and type(size) is int and 0 <= size < MAX_SIZE
    if not fine or not (SHA256 if in_lfs else GIT_OID).fullmatch(str(checksum)):
        raise BadSource(
            f"the hub's listing of {str(path)[:120]!r} is damaged: size {str(size)[:40]}, checksum missing or odd"
        )
    url = base + quote(path.encode("utf-8", "surrogatepass"))
    return RemoteFile(path, size, url, sha256=checksum) if in_lfs else RemoteFile(path, size, url, git_oid=checksum)


def _next_query(link: str, where: str) -> str:
    """The query of the next page; "" after the last."""
    found = NEXT.search(link)
    if not found:
        return ""
    query = found[1].partition("?")[2].partition("#")[0]
    if not query or not query.isascii() or not query.isprintable() or " " in query:
        raise BadSource(
            f"{where}: the hub's listing goes on at '{shown(found[1])}', which is no page of it; nothing is fetched"
        )
    return query
