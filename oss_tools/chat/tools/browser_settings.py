"""What the browser may reach, from a YAML file or a word of --tools.

browser:
  search: http://127.0.0.1:8888      # a SearXNG; or
  folder: handbook                   # HTML, Markdown and texts, relative to the file's folder; or
  site: http://intranet:8000/docs/   # a site that is read as a whole, and searched here
  pages: public                      # what may be opened: public addresses, or hosts: [example.org, "*.example.net"]
  private: ["intranet:8000"]         # hosts that may be opened though they lie on this machine or its network
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oss_tools.chat.tools.base import Tool
from oss_tools.chat.tools.browser import browser_tools
from oss_tools.chat.tools.fetching import PUBLIC, Fetcher, Place
from oss_tools.chat.tools.searching import Folder, Site, Source, Web
from oss_tools.errors import BadRequest

SOURCES = ("search", "folder", "site")
FIELDS = {*SOURCES, "pages", "private"}


def browser_of_word(place: str) -> list[Tool]:
    """What `browser:FOLDER` and `browser:ADDRESS`, a SearXNG's, mean by the part behind the colon. Raises BadRequest."""
    if not place:
        raise BadRequest("browser: needs a place to search: browser:FOLDER, browser:ADDRESS of a SearXNG, or a YAML file")
    named = {"search": place} if "://" in place else {"folder": place}
    return browser_of(named, "browser", Path())


def browser_of(entry: Any, where: str, folder: Path) -> list[Tool]:
    """The tools of a file's entry `browser`. Raises BadRequest."""
    if not isinstance(entry, Mapping) or set(entry) - FIELDS:
        raise BadRequest(f"{where}: must be an object with {', '.join(sorted(FIELDS))}")
    named = [key for key in SOURCES if key in entry]
    if len(named) > 1 or any(not isinstance(entry[key], str) or not entry[key] for key in named):
        raise BadRequest(f"{where}: names one of {', '.join(SOURCES)}, as a text")
    pages, private = entry.get("pages", []), entry.get("private", [])
    public = pages == PUBLIC
    places = [Place.of(text, f"{where}: pages") for text in _texts([] if public else pages, f"{where}: pages")]
    places += [Place.of(text, f"{where}: private", private=True) for text in _texts(private, f"{where}: private")]
    if not named and not places and not public:
        raise BadRequest(f"{where}: names nothing that could be searched or opened: {', '.join(sorted(FIELDS))}")
    return browser_tools(_source(entry, named[0] if named else "", where, folder, Fetcher(places, public)))


def _source(entry: Mapping[str, Any], kind: str, where: str, folder: Path, pages: Fetcher) -> Source:
    if kind in ("folder", "site") and (pages.places or pages.public):
        raise BadRequest(f"{where}: a {kind} is all that is opened; leave out `pages` and `private`, or name a `search`")
    if kind == "folder":
        return Folder(folder / Path(entry["folder"]).expanduser())
    address = entry.get(kind, "")
    own = Fetcher([Place.of_address(address, f"{where}: {kind}")]) if address else Fetcher()
    return Site(address, own) if kind == "site" else Web(address, own, pages)


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value) or len(value) > 1000:
        raise BadRequest(f"{where}: must be a list of hosts" + (", or the word public" if where.endswith("pages") else ""))
    return value
