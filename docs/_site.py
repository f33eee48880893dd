"""A hook of mkdocs: a link that leaves docs/ (to the code, README, results) becomes its text, since the site has no such page."""

from __future__ import annotations

import re
from typing import Any

LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+)[\w.][^)\s]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page without those links; links between pages stay as they are."""
    inside = page.file.src_uri.count("/")  # how often ../ may stand and still be in docs/
    return LINK.sub(lambda found: found[2] if found[3].count("../") > inside else found[0], markdown)
