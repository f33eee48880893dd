"""Reasoning as text that a client keeps and gives back without reading it: `encrypted_content`, a thinking block's `signature`.

It is the reasoning itself in base64. Nobody but the client ever has it, so there is nothing to hide.
"""

from __future__ import annotations

import base64
import binascii

PREFIX = "oss-tools.1."


def seal(text: str) -> str:
    """The text, sealed."""
    return PREFIX + base64.b64encode(text.encode("utf-8", "replace")).decode()


def unseal(sealed: str) -> str | None:
    """The text; None if somebody else sealed it."""
    if not sealed.startswith(PREFIX):
        return None
    try:
        return base64.b64decode(sealed.removeprefix(PREFIX), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
