"""Which model, where it is, and how patiently it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from oss_tools.download.addresses import check_address, shown
from oss_tools.endpoints.keys import read_key
from oss_tools.errors import BadRecipe, BadSource

CHAT = "/chat/completions"


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible API.

    Attributes:
        url: of the API, as in http://localhost:8000/v1; the address of its chat completions serves as well.
        model: its name there.
        key_variable: the environment variable that holds the API key; None takes OPENAI_API_KEY where it is set, for https only.
        concurrency: requests under way at once.
        timeout: seconds for one request, all of it.
        tries: of a request in the face of failures that may pass.
        role: what it is to the user, for messages: "grader", "endpoint".
        options: what names its address, its model and its key, for messages.
    """

    url: str
    model: str
    key_variable: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    tries: int = 8
    role: str = "endpoint"
    options: tuple[str, str, str] = ("MODEL", "MODEL", "--key")

    @property
    def name(self) -> str:
        """URL#MODEL, without what may be secret in an address."""
        return f"{shown(self.base())}#{self.model}"

    def base(self) -> str:
        """The API's address. Raises BadRecipe for what is no web address."""
        url = self.url.rstrip("/")
        try:
            check_address(url)
        except BadSource as error:
            raise BadRecipe(f"{self.options[0]}: {error}; expected an address like http://localhost:8000/v1") from None
        return url.removesuffix(CHAT)

    def address(self, path: str = CHAT) -> str:
        """Where a path of the API is. Raises BadRecipe."""
        return self.base() + path

    def key(self) -> str | None:
        """The API key. Raises BadRecipe if a variable is named that is not set. It is never in messages, records or files."""
        return read_key(self.key_variable, self.url, f"the {self.role}'s", self.options[2]) or None


def is_endpoint(text: str) -> bool:
    """Whether a model is named as one behind an address: https://host/v1#name."""
    return text.startswith(("http://", "https://"))


def parse_endpoint(text: str, **how: object) -> Endpoint:
    """The endpoint that https://host/v1#name names; how: further attributes. Raises BadRecipe."""
    url, _, model = text.partition("#")
    endpoint = Endpoint(url, model, **how)  # type: ignore[arg-type]
    endpoint.base()
    if not model:
        raise BadRecipe(f"{shown(url)}: which model of this server? Name it behind a #, as in {shown(url)}#gpt-oss-20b")
    return endpoint
