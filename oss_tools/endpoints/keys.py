"""Keys of APIs: where they are read, and how a server's words are cleared of them."""

from __future__ import annotations

import base64
import os
import re
from urllib.parse import quote, urlsplit

from oss_tools.errors import BadRecipe

DEFAULT = "OPENAI_API_KEY"
NAME = re.compile(
    r"[A-Z_][A-Z0-9_]{0,63}"
)  # of a variable, as they are spelt; a key that was given in its place is not shown
LONG = 8  # characters of a key that is looked for in other spellings too
BLOT = "[the key]"


def read_key(variable: str | None, url: str, whose: str = "the grader's", option: str = "--grader-key") -> str:
    """The key that an environment variable holds, or "". None takes OPENAI_API_KEY where it is set, for https only.

    whose, option: for messages: of which model it is the key, and what names the variable.

    Raises BadRecipe, which never shows the key, if a variable is named that is not set, or what it holds cannot be one.
    """
    if variable is None:
        key = os.environ.get(DEFAULT, "") if urlsplit(url).scheme == "https" else ""
    elif not (key := os.environ.get(variable, "")):
        named = variable if NAME.fullmatch(variable) else f"that {option} names (it takes a variable's name, not a key)"
        raise BadRecipe(f"the environment variable {named}, which is to hold {whose} key, is not set")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise BadRecipe(f"{whose} key has blanks, line breaks or characters that no key has; check what the variable holds")
    return key


class Blotter:
    """Clears texts of a key, also where it is percent-encoded, in hexadecimal or in base64."""

    def __init__(self, key: str) -> None:
        spellings = {key}
        if len(key) >= LONG:
            spellings |= {quote(key, safe=""), key.encode().hex(), *_in_base64(key.encode())}
        longest_first = sorted(filter(None, spellings), key=len, reverse=True)
        flags = re.IGNORECASE if len(key) >= LONG else re.NOFLAG
        self._pattern = re.compile("|".join(map(re.escape, longest_first)), flags) if key else None

    def __call__(self, text: str) -> str:
        return self._pattern.sub(BLOT, text) if self._pattern else text


def _in_base64(data: bytes) -> set[str]:
    """The characters that are the same wherever the data begins in what is encoded, for each of the three places."""
    found = set()
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode()
        core = text[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
        found |= {core, core.translate(str.maketrans("+/", "-_"))}
    return found
