"""Which model grades, where it is, and with which key it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from oss_tools.endpoints.endpoint import Endpoint


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

    def endpoint(self) -> Endpoint:
        """Where it is."""
        options = "--grader-url", "--grader-model", "--grader-key"
        how = self.key_variable, self.concurrency, self.timeout, self.tries
        return Endpoint(self.url, self.model, *how, role="grader", options=options)
