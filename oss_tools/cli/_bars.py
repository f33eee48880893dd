"""What is drawn on a terminal's stderr while something takes its time: bars and a spinner, by rich.

Both write to the stream behind the outlet, so the names in them (files of a hub, models, kernels) are made visible here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from oss_tools.cli._outlet import Outlet, behind
from oss_tools.escapes import in_a_line


class Name(ProgressColumn):
    """A bar's name as it is written: neither rich's markup nor a terminal's language."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(in_a_line(task.description))


class Bars(Progress):
    """Progress bars on stderr; lines that are printed meanwhile go above them, through an outlet too."""

    def __init__(self, *columns: ProgressColumn, transient: bool = False) -> None:
        super().__init__(*columns, console=_console(), transient=transient)

    def start(self) -> None:
        super().start()
        _cover()


@contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done; yields a function that changes it."""
    with _console().status(Text("")) as status:
        _cover()
        yield lambda text: status.update(Text(in_a_line(text)))


def _console() -> Console:
    return Console(file=behind(sys.stderr))


def _cover() -> None:
    """Puts outlets before the streams through which rich passes printed lines; rich takes both away together."""
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), FileProxy):
            setattr(sys, name, cast(TextIO, Outlet(cast(TextIO, stream))))
