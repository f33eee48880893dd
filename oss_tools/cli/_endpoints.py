"""What the verbs that take a model behind an address share: its options, and what asking it would take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._groups import options
from oss_tools.cli._options import model_path
from oss_tools.cli._output import print_facts, print_json, print_table, remark, remark_unless

if TYPE_CHECKING:
    from oss_tools.endpoints.endpoint import Endpoint
    from oss_tools.endpoints.wire import Price
    from oss_tools.harness.plan import Planned
    from oss_tools.harness.subjects import EndpointSubject


def model_or_endpoint(text: str) -> Path | str:
    """A checkpoint's path, or an address as it is. Raises BadSource."""
    from oss_tools.endpoints.endpoint import is_endpoint

    return text if is_endpoint(text) else model_path(text)


def read_price(text: str) -> Price:
    from oss_tools.endpoints.wire import Price

    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: dollars for a million tokens read and written, as in 0.15,0.60") from None
    if not (0 <= prompt < 1e6 and 0 <= completion < 1e6):
        raise typer.BadParameter(f"{text!r}: is not a price")
    return Price(prompt, completion)


@options
class EndpointOptions:
    """How a model behind an address is asked."""

    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="VARIABLE",
            help="For an endpoint: the environment variable that holds its key. [default: OPENAI_API_KEY, for https]",
            show_default=False,
        ),
    ] = None
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="For an endpoint: how many requests to send at once.")] = 16
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", min=1.0, help="For an endpoint: how many seconds to wait for one answer."
        ),
    ] = 600.0
    price: Annotated[
        Any,
        typer.Option(
            "--price",
            parser=read_price,
            metavar="IN,OUT",
            help="For an endpoint: its price in dollars for a million tokens read, and for a million written. "
            "The record then has the cost.",
            show_default=False,
        ),
    ] = None


def opened(model: Path | str, wire: EndpointOptions) -> Endpoint | None:
    """The endpoint that MODEL names, or None for a checkpoint. Raises BadRecipe."""
    from oss_tools.endpoints.endpoint import parse_endpoint

    if isinstance(model, Path):
        return None
    endpoint = parse_endpoint(model, key_variable=wire.key, concurrency=wire.jobs, timeout=wire.timeout)
    endpoint.key()
    return endpoint


def show_calls(rows: list[Planned], endpoint: Endpoint, price: Price | None, as_json: bool) -> None:
    """What a run would ask of an endpoint: calls, tokens (a token for four characters), the most it could cost."""
    from dataclasses import asdict

    calls, prompt, most = (sum(getattr(row, name) for row in rows) for name in ("requests", "prompt_tokens", "most_tokens"))
    dollars = price.of(prompt, most) if price else None
    if as_json:
        total = {"requests": calls, "prompt_tokens": prompt, "most_tokens": most, "most_dollars": dollars}
        print_json({"endpoint": endpoint.name, "tasks": [asdict(row) for row in rows], "total": total})
        return
    cells = [(r.task, f"{r.questions:,}", f"{r.requests:,}", f"{r.prompt_tokens:,}", f"{r.most_tokens:,}") for r in rows]
    print_table(cells, ("task", "questions", "calls", "tokens to read, about", "to write, at most"), right=(1, 2, 3, 4))
    print()
    print_facts(
        {
            "endpoint": endpoint.name,
            "in all": f"{calls:,} calls, some {prompt:,} tokens to read, at most {most:,} to write",
            "cost": None if dollars is None else f"at most about {dollars:,.2f} dollars; answers are mostly much shorter",
        }
    )


@contextmanager
def asked(endpoint: Endpoint, price: Price | None, tasks: Mapping[str, Any], quiet: bool) -> Iterator[EndpointSubject]:
    """The model behind an endpoint, ready for these tasks, after a look at its manners. Raises BadSource, Unreachable."""
    from oss_tools.endpoints.client import Client
    from oss_tools.endpoints.manners import remarks
    from oss_tools.harness.prompts import has_tools
    from oss_tools.harness.subjects import EndpointSubject

    say = remark_unless(quiet)
    loaded = tasks["tasks"].values()
    sampled = any((task.config.generation_kwargs or {}).get("do_sample") for task in loaded)
    tools = any(has_tools(doc) for task in loaded for doc in itertools.islice(task.eval_docs, 8))
    with Client(endpoint, dispensable=("temperature", "seed"), say=say) as client:
        for line in remarks(client, sampled=sampled, tools=tools):
            remark(f"{endpoint.name}: {line}")
    subject = EndpointSubject(endpoint, price, say)
    try:
        yield subject
    finally:
        subject.close()
