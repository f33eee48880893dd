"""Which model grades, where it is, and with which key it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from oss_tools.download.addresses import check_address
from oss_tools.errors import BadRecipe, BadSource
from oss_tools.harness.keys import read_key


@dataclass(frozen=True)
class GraderSettings:
    """Which model grades, and how patiently it is asked.

    Attributes:
        url: of the API, as in http://localhost:8000/v1.
        model: its name there.
        key_variable: the environment variable that holds the API key; None takes OPENAI_API_KEY where it is set, for https only.
        concurrency: requests under way at once.
        timeout: seconds for one request, all of it.
        tries: of a request in the face of failures that may pass.
        malformed_tries: of a request whose answers are no grades.
        max_tokens: of an answer.
    """

    url: str
    model: str
    key_variable: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    tries: int = 8
    malformed_tries: int = 4
    max_tokens: int = 2048

    def endpoint(self) -> str:
        """The address that is posted to. Raises BadRecipe for what is no web address."""
        url = self.url.rstrip("/")
        try:
            check_address(url)
        except BadSource as error:
            raise BadRecipe(f"--grader-url: {error}; expected an address like http://localhost:8000/v1") from None
        return url if url.endswith("/chat/completions") else f"{url}/chat/completions"

    def key(self) -> str | None:
        """The API key. Raises BadRecipe if a variable is named that is not set. It is never in messages, records or files."""
        return read_key(self.key_variable, self.url) or None
