"""The options that name a simulated user, and what playing with one would take."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._endpoints import read_price
from oss_tools.cli._groups import need_each_other, options
from oss_tools.cli._output import print_facts, remark_unless

if TYPE_CHECKING:
    from oss_tools.endpoints.wire import Price
    from oss_tools.harness.plan import Planned
    from oss_tools.harness.tau2.simulation import Simulation


@options
class UserOptions:
    """A model that plays the user in tau2's tasks."""

    user_url: Annotated[
        str | None,
        typer.Option(
            "--user-url",
            metavar="URL",
            help="For tau2's tasks: the address of the model that plays the user, an OpenAI-compatible API.",
            show_default=False,
        ),
    ] = None
    user_model: Annotated[
        str | None,
        typer.Option(
            "--user-model",
            metavar="NAME",
            help="For tau2's tasks: the name of the model that plays the user.",
            show_default=False,
        ),
    ] = None
    user_key: Annotated[
        str | None,
        typer.Option(
            "--user-key",
            metavar="VARIABLE",
            help="For tau2's tasks: the environment variable that holds that model's key. [default: "
            "OPENAI_API_KEY, for https]",
            show_default=False,
        ),
    ] = None
    user_price: Annotated[
        Any,
        typer.Option(
            "--user-price",
            parser=read_price,
            metavar="IN,OUT",
            help="For tau2's tasks: the price of that model, written as for --price.",
            show_default=False,
        ),
    ] = None
    tau2_python: Annotated[
        str | None,
        typer.Option(
            "--tau2-python",
            metavar="FILE",
            help="For tau2's tasks: the Python in which tau2 is installed, which runs its domains. [default: this one]",
            show_default=False,
        ),
    ] = None

    def __post_init__(self) -> None:
        need_each_other(("--user-url", self.user_url), ("--user-model", self.user_model))


@contextmanager
def simulating(user: UserOptions, jobs: int, data: Path | None, quiet: bool) -> Iterator[Simulation | None]:
    """Within it, tasks find the simulated user that is named, if one is. Raises BadRecipe, MissingPackage."""
    if user.user_url is None or user.user_model is None:
        yield None
        return
    from oss_tools.endpoints.endpoint import Endpoint
    from oss_tools.errors import MissingPackage
    from oss_tools.harness.tau2.simulation import Simulation, simulating_with

    if data is None:
        raise typer.BadParameter("it needs --data, a checkout of sierra-research/tau2-bench", param_hint="--user-url")
    if user.tau2_python is None and find_spec("tau2") is None:
        raise MissingPackage(
            "tau2 is not installed here; --tau2-python names a Python that has it, where its domains are run"
        )
    names = "--user-url", "--user-model", "--user-key"
    endpoint = Endpoint(user.user_url, user.user_model, user.user_key, jobs, role="simulated user", options=names)
    say = remark_unless(quiet)
    with Simulation(endpoint, user.tau2_python or sys.executable, data, say) as simulation, simulating_with(simulation):
        yield simulation


def show_users(rows: Sequence[Planned], price: Price | None) -> None:
    """What the simulated user's side would take, and cost at the price of --user-price."""
    names = ("user_calls", "user_prompt_tokens", "user_tokens")
    calls, read, written = (sum(getattr(row, name) for row in rows) for name in names)
    if not calls:
        return
    facts = {"simulated user": f"some {calls:,} calls, {read:,} tokens to read, {written:,} to write"}
    if price:
        facts["its cost"] = f"about {price.of(read, written):,.2f} dollars"
    print()
    print_facts(facts)
