"""Groups of options: what a verb's parameters become, what a group that extends another changes, what a group refuses."""

from __future__ import annotations

import inspect
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from oss_tools.cli._groups import flat, need_each_other, options
from oss_tools.cli.main import load, verbs

MOST = 20  # parameters of a verb's `run`: what is more wants a group


@options
class Lamp:
    colour: Annotated[str, typer.Option("--colour")] = "white"
    watts: Annotated[int, typer.Option("--watts", min=1)] = 5


@options
class Torch(Lamp):
    watts: Annotated[int, typer.Option("--watts", min=1, help="Of a torch.")] = 2
    battery: Annotated[bool, typer.Option("--battery")] = False

    def __post_init__(self) -> None:
        if self.battery and self.watts > 10:
            raise typer.BadParameter("too much for a battery", param_hint="--watts")


def shine(
    place: Annotated[str, typer.Argument()], *, torch: Torch, times: Annotated[int, typer.Option("--times")] = 1
) -> None:
    print(place, torch.colour, torch.watts, torch.battery, times)


def called(*arguments: str) -> str:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(flat(shine))
    result = CliRunner().invoke(app, list(arguments))
    return result.stdout if result.exit_code == 0 else f"{result.exit_code} {result.stderr}"


def test_options_of_a_group_stand_where_it_does() -> None:
    assert list(inspect.signature(flat(shine)).parameters) == ["place", "colour", "watts", "battery", "times"]
    assert called("cellar") == "cellar white 2 False 1\n"
    assert called("cellar", "--watts", "7", "--battery", "--colour", "red", "--times", "3") == "cellar red 7 True 3\n"


def test_a_group_refuses_before_the_verb_begins() -> None:
    assert called("cellar", "--watts", "11", "--battery").startswith("2 ")
    assert called("cellar", "--watts", "0").startswith("2 ")  # the limit of the option that was replaced counts


def test_options_that_need_each_other() -> None:
    need_each_other(("--url", None), ("--name", None))
    need_each_other(("--url", "x"), ("--name", "y"))
    for url, name in (("x", None), (None, "y")):
        with pytest.raises(typer.BadParameter, match="--url and --name"):
            need_each_other(("--url", url), ("--name", name))


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_no_option_of_a_verb_stands_twice_and_signatures_stay_short(verb: str) -> None:
    named = [name for parameter in load(verb).params for name in (*parameter.opts, *parameter.secondary_opts)]
    assert len(named) == len(set(named))
    module = __import__(f"oss_tools.cli.{verb.replace('-', '_')}", fromlist=["run"])
    assert len(inspect.signature(module.run).parameters) <= MOST
