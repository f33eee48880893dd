"""huggingface_hub, for all that ask it for its settings, its token or its session.

It reads its settings (HF_ENDPOINT, HF_HUB_DOWNLOAD_TIMEOUT, …) when it is imported, and raises ValueError for those that it
cannot read. Here that is a line. Its headers (`build_hf_headers`) are not used: to make them it asks the hub for a list of
patterns of environment variables, and tells the hub which of them fit.
"""

from __future__ import annotations

import os

from oss_tools.download.addresses import check_endpoint, without_addresses
from oss_tools.errors import BadSource

__all__ = ["constants", "get_session", "token"]

try:
    check_endpoint(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
except BadSource as error:
    raise BadSource(f"HF_ENDPOINT: {error}") from None
try:
    from huggingface_hub import constants, get_session, get_token
except ValueError as error:
    said = without_addresses(str(error))[:200]
    raise BadSource(f"an environment variable HF_… holds what huggingface_hub cannot read: {said}") from None


def token() -> str:
    """The user's token for the hub (HF_TOKEN, or the file that `hf auth login` writes); "" without one.

    Raises BadSource, which does not show it, for what cannot be one.
    """
    found = "" if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token() or ""
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise BadSource("the token for the hub (HF_TOKEN, or the file of `hf auth login`) has characters that no token has")
    return found
