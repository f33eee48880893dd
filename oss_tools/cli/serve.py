"""Serve models over HTTP, as OpenAI's and Anthropic's clients expect it.

When the server is ready, it prints its address. That is a page to talk with the models; the APIs are under /v1:
chat/completions, completions, responses, messages, models. Only this machine can reach the server, unless --host says
otherwise, which needs a key. Requests share each pass over the weights, and each gets the tokens that `generate` would give
it. Ctrl-C ends the server.

MODEL may be NAME=MODEL, which serves a checkpoint under a name of your choice.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._engine import EngineOptions, Load, loaded
from oss_tools.cli._groups import options
from oss_tools.cli._options import QuietFlag, model_path
from oss_tools.cli._output import remark
from oss_tools.cli._tools import ToolOptions

if TYPE_CHECKING:
    from oss_tools.checkpoints import Metadata
    from oss_tools.engine.backend import Options
    from oss_tools.engine.engine import Engine
    from oss_tools.engine.room import Room
    from oss_tools.models import Checkpoint
    from oss_tools.serve.settings import Settings

EXAMPLES = """
oss-tools serve tiny
oss-tools serve gpt-oss-20b/ --context 65536 --parallel 4
oss-tools serve small=gpt-oss-20b-q4.gguf large=gpt-oss-20b/ --port 0
oss-tools serve model.gguf --host 0.0.0.0 --api-key-file key.txt
"""

PACKAGES = ("starlette", "uvicorn", "pydantic")
NOTHING = ("", ".", "..")
MOST_KEY = 4096  # bytes of a file that holds a key


@options
class ListeningOptions:
    """Where the server listens, whom it answers, and how many at once."""

    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="The address to listen on; any but this machine's own needs --api-key-file."
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = 8000
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="A file that holds the key which clients must send."),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="URL", help="Let the pages of this site call the server; may be repeated."),
    ] = None
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="The most requests that are computed together.")] = 8
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="The most requests that wait; further ones are told to come again.")
    ] = 64

    def settings(self, tools: ToolOptions) -> Settings:
        """Raises BadRequest for a file that holds no key, and what opening the tools raises."""
        from oss_tools.serve.settings import Settings

        key = read_key(self.api_key_file) if self.api_key_file else None
        origins = tuple(self.allow_origin or ())
        about_tools = {"tools": tools.opened(), "rounds": tools.rounds}
        return Settings(self.host, self.port, key, origins, self.parallel, self.queue, **about_tools)  # type: ignore[arg-type]


@options
class ServedOptions(EngineOptions):
    """How models are loaded that serve many requests."""

    load: Load = "resident"
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "-c",
            min=1,
            help="The most tokens that a sequence may have. [default: what fits]",
            show_default=False,
        ),
    ] = None


@options
class ServedTools(ToolOptions):
    """Tools of the server itself."""

    tools: Annotated[
        str,
        typer.Option(
            "--tools",
            metavar="LIST",
            help="Tools that the server runs for clients that ask for it, separated by commas, as in `chat --tools`.",
        ),
    ] = ""


def run(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Checkpoints: a path, the owner/name of a download, or tiny (the embedded model); or NAME=MODEL.",
        ),
    ],
    *,
    listening: ListeningOptions,
    tools: ServedTools,
    how: ServedOptions,
    quiet: QuietFlag = False,
) -> None:
    require_packages()
    from oss_tools.engine.backend import Options
    from oss_tools.engine.turns import Turns
    from oss_tools.serve.running import address_of, listen, serve
    from oss_tools.serve.served import Served

    settings = listening.settings(tools)
    paths = named(models)
    socket = listen(settings)
    each = how.memory // len(paths) if how.memory else None
    given = how.settings() | {"memory": each, "quiet": quiet}
    room = Options(how.threads, how.activations, load=how.load, memory=each, cache=how.cache)
    served: dict[str, Served] = {}
    turns = Turns()
    with socket, ExitStack() as stack:
        for number, (name, path) in enumerate(paths.items()):
            fitting = Fitting(settings, how.context, len(paths) - number, room)
            engine = stack.enter_context(loaded(path, **given, check=has_tokenizer, context_for=fitting))
            served[name] = Served.of(name, engine, settings, turns, fitting.room.positions)
            stack.callback(served[name].scheduler.close)
            if not quiet:
                remark(about(name, engine, served[name].template is not None))
        address = address_of(socket)
        serve(served, settings, socket, lambda: print(f"serving {', '.join(served)} at {address}", flush=True))


class Fitting:
    """Chooses the context of a model, and keeps what it found.

    Attributes:
        room: what there is room for.
    """

    room: Room

    def __init__(self, settings: Settings, context: int | None, models: int, options: Options) -> None:
        self._settings, self._context, self._models, self._options = settings, context, models, options

    def __call__(self, checkpoint: Checkpoint, backend: str) -> int:
        from oss_tools.engine.room import room_for

        self.room = room_for(checkpoint, backend, self._options, self._settings.parallel, self._context, self._models)
        return self.room.context


def require_packages() -> None:
    """Raises MissingPackage where the server's packages are not installed."""
    from oss_tools.errors import MissingPackage, how_to_install

    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise MissingPackage(f"the server needs {', '.join(missing)}: {how_to_install('serve')}")


def read_key(path: Path) -> str:
    """The key in a file. Raises BadRequest if there is none."""
    from oss_tools.checkpoints.files import read_text
    from oss_tools.errors import BadRequest

    key = read_text(path, MOST_KEY).strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise BadRequest(f"{path}: a key is one word of ASCII characters; make one with: openssl rand -hex 24")
    return key


def named(models: list[str]) -> dict[str, Path]:
    """The checkpoints by the names under which they are served. Raises BadRequest for two of one name, BadSource."""
    from oss_tools.errors import BadRequest

    found: dict[str, Path] = {}
    for text in models:
        name, given, rest = text.partition("=")
        if not given or Path(text).exists():
            name, rest = name_of(text), text
        if not name or name in found:
            raise BadRequest(f"two models are named {name!r}: say which is which with NAME={rest}")
        found[name] = model_path(rest)
    return found


def name_of(text: str) -> str:
    """The name of a model that has been given none: the end of its path."""
    path = Path(text)
    return (path.resolve() if path.name in NOTHING else path).name.removesuffix(".gguf").removesuffix(".ready")


def has_tokenizer(metadata: Metadata) -> None:
    """Raises BadCheckpoint for a model whose texts cannot be read."""
    from oss_tools.engine.text import Text

    if metadata.tokenizer is None:
        Text(metadata)


def about(name: str, engine: Engine, speaks: bool) -> str:
    """A model in a line."""
    how = "" if speaks else "; it has no chat template and continues texts only"
    return f"{name}: a context of {engine.context} tokens{how}"
