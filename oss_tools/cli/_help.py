"""How the help of a verb is laid out: the same with every version of typer, and no word is broken at a hyphen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from typer.core import TyperCommand

UNBROKEN = "\u2011"  # a hyphen at which no line is wrapped
NUMBER = re.compile(
    r"<(int|float)( range)?>|\b(INTEGER|FLOAT)( RANGE)?$"
)  # what typer calls a number that has no name of its own
BETWEEN = re.compile(r"([\d.e-]+)<=x<=([\d.e-]+)")
NO_LIMIT = re.compile(r"; x>=0(\.0)?(?=\])|\s+\[x>=0(\.0)?\]")  # which every count has
AT_LEAST = re.compile(r"x>=([\d.e-]+)")


class VerbCommand(TyperCommand):
    """A verb, whose help ends with lists (formats, recipes, …) that are made only when it is shown.

    Attributes:
        lists: returns title -> rows of (name, what it is).
        prepared: the command line as its options want it.
    """

    lists: Callable[[], dict[str, list[tuple[str, str]]]] = staticmethod(dict)
    prepared: Callable[[list[str]], list[str]] = staticmethod(lambda arguments: arguments)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.prepared(args))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [self.options_metavar or "", *map(_in_usage, self._arguments())]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        unbroken(formatter, super().format_help, ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments = [(_named(a), _limits(a.get_help_record(ctx)[1])) for a in self._arguments()]
        records = [p.get_help_record(ctx) for p in self.get_params(ctx) if p.param_type_name == "option"]
        rows = [(NUMBER.sub(_letter, record[0]), _limits(record[1])) for record in records if record]
        for title, found in (("Arguments", arguments), ("Options", rows)):
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        for title, rows in self.lists().items():
            with formatter.section(title):
                formatter.write_dl(rows)
        super().format_epilog(ctx, formatter)

    def _arguments(self) -> list[Any]:
        return [parameter for parameter in self.params if parameter.param_type_name == "argument"]


def unbroken(formatter: Any, write: Callable[[Any, Any], None], ctx: Any) -> None:
    """Has `write` fill the formatter, whose lines are then wrapped at spaces alone."""
    write_text, write_dl = formatter.write_text, formatter.write_dl

    def rows(found: Iterable[tuple[str, str]], *rest: Any, **options: Any) -> None:
        write_dl([(first, second.replace("-", UNBROKEN)) for first, second in found], *rest, **options)

    formatter.write_text = lambda text: write_text(text.replace("-", UNBROKEN))
    formatter.write_dl = rows
    write(ctx, formatter)
    formatter.buffer = [part.replace(UNBROKEN, "-") for part in formatter.buffer]


def _named(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _in_usage(argument: Any) -> str:
    name = _named(argument) + ("..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def _letter(number: re.Match[str]) -> str:
    return "X" if "float" in number[0].lower() else "N"


def _limits(text: str) -> str:
    """A help text whose bounds are words, and whose brackets are one."""
    text = NO_LIMIT.sub("", text.replace("\\[", "["))  # as old versions of typer write it
    text = AT_LEAST.sub(r"at least \1", BETWEEN.sub(r"\1 to \2", text))
    return re.sub(r"\]\s+\[", "; ", re.sub(r"\s+\[", " [", text))
