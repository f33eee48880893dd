"""Show records as tables, a page or JUnit, and judge them by a gate.

RECORD is a JSON file that `compare`, `eval` or `bench` wrote, or that the page of `serve` saved. Without options, records
become tables, sorted by size, which mark the best figure of each column and the differences that are only noise. --html
makes one page with plots, which needs no network. A FILE of - is the standard output.

--gate judges the figures by limits: a gate's name, or a YAML file. A limit is on a figure, or on its change against the
base or against --baseline, an earlier record. A rule fails if the 95 % interval lies wholly beyond its limit; a rule marked
`strict` fails by the figure itself. If a rule fails, the exit status is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._options import JsonFlag, Published, names_in
from oss_tools.cli._output import print_json, remark
from oss_tools.escapes import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oss_tools.report.gates import Verdict
    from oss_tools.report.sheet import Sheet

EXAMPLES = """
oss-tools report comparison.json
oss-tools report comparison.json --html report.html --markdown report.md
oss-tools report comparison.json --gate default --junit gate.xml
oss-tools report new.json --gate limits.yaml --baseline old.json
oss-tools report eval-bf16.json eval-q4.json bench.json
oss-tools report comparison.json --published gpt-oss-20b,o4-mini
oss-tools report comparison.json --card quantizations.svg
oss-tools report --history results/history --html history.html
"""
NARROWEST = 60  # characters of a table


def help_lists() -> dict[str, list[tuple[str, str]]]:
    from oss_tools.report.published import load_published, published_names
    from oss_tools.report.rules import gate_names, load_gate

    published = [(name, load_published(name).about) for name in published_names()]
    return {"Gates": [(name, load_gate(name).about) for name in gate_names()], "Published figures": published}


def complete_gate(incomplete: str) -> list[str]:
    from oss_tools.report.rules import gate_names

    return [name for name in gate_names() if name.startswith(incomplete)]


def run(
    records: Annotated[
        list[Path] | None, typer.Argument(metavar="RECORD", help="The records: JSON files.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the records to this file, as a page.", show_default=False),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write the records to this file, as Markdown.", show_default=False),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Write the outcome to this file, as JUnit XML.", show_default=False),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            "--card",
            metavar="FILE.svg",
            help="Write a picture for a model's page, and FILE.md, a block of Markdown that shows it.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history",
            metavar="DIR",
            help="Show how figures moved over the comparisons in this folder; --html and --card make plots of it.",
            show_default=False,
        ),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            "--gate",
            metavar="GATE",
            autocompletion=complete_gate,
            help="Judge the record by this gate: a name from the list below, or a YAML file.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            "--baseline", metavar="FILE", help="An earlier record to compare with; may be repeated.", show_default=False
        ),
    ] = None,
    published: Published = None,
    as_json: JsonFlag = False,
) -> None:
    from oss_tools.checkpoints.files import check_place
    from oss_tools.report.published import with_published
    from oss_tools.report.reading import load_sheets

    if baseline and not gate:
        raise typer.BadParameter("a baseline is for a gate; give --gate too", param_hint="--baseline")
    if card and card.suffix != ".svg":
        raise typer.BadParameter("the file's name must end with .svg", param_hint="--card")
    for file in (html, markdown, junit, card):
        if file and str(file) != "-":
            check_place(file)
    if history:
        if records or gate or markdown or junit:
            raise typer.BadParameter("it goes only with --card, --html and --json, without records", param_hint="--history")
        show_history(history, card, html)
        return
    if not records:
        raise typer.BadParameter("name the records (JSON files), or give --history DIR", param_hint="RECORDS")
    sheets = load_sheets(records)
    verdicts = judged(sheets, gate, baseline or [])
    sheets = [with_published(sheet, names_in(published)) for sheet in sheets]
    if as_json:
        print_json(to_json(sheets, verdicts))
    elif Path("-") not in (html, markdown, junit):
        print_sheets(sheets, verdicts)
    write_reports(sheets, verdicts, html, markdown, junit)
    if card:
        write_card(sheets, card)
    if any(not verdict.passed for verdict in verdicts):
        raise typer.Exit(1)


def judged(sheets: Sequence[Sheet], gate: str | None, baseline: Sequence[Path]) -> list[Verdict]:
    """The gate's verdicts; none without a gate."""
    if gate is None:
        return []
    from oss_tools.report.gates import judge_all
    from oss_tools.report.reading import load_sheets
    from oss_tools.report.rules import load_gate

    return judge_all(load_gate(gate), sheets, load_sheets(baseline))


def write_reports(
    sheets: Sequence[Sheet], verdicts: Sequence[Verdict], html: Path | None, markdown: Path | None, junit: Path | None
) -> None:
    """Writes the files that are wanted."""
    if html:
        from oss_tools.report.html import page

        _write(html, page(sheets, verdicts))
    if markdown:
        from oss_tools.report.markdown import markdown as as_markdown

        _write(markdown, as_markdown(sheets, verdicts))
    if junit:
        from oss_tools.report.junit import junit as as_junit

        _write(junit, as_junit(sheets, verdicts))


def write_card(sheets: Sequence[Sheet], file: Path) -> None:
    """The picture, and beside it the block that shows it."""
    from oss_tools.report.card import card

    if len(sheets) != 1:
        raise typer.BadParameter("it shows one comparison: name one record", param_hint="--card")
    made = card(sheets[0], file.name)
    _write(file, made.svg)
    _write(file.with_suffix(".md"), made.markdown)


def show_history(folder: Path, card: Path | None, html: Path | None) -> None:
    """The figures over records, as tables, as a picture, as a page."""
    from oss_tools.report.history import CUT, history_text, load_history, picture_of, plots_of

    entries = load_history(folder)
    if card:
        _write(card, picture_of(entries))
    if html:
        from oss_tools.report.html import history_page

        _write(html, history_page(f"{len(entries)} records", CUT, plots_of(entries)))
    if not (card or html):
        print(history_text(entries))


def _write(file: Path, text: str) -> None:
    """The document, whose own text holds nothing that a terminal or an editor would obey: what a record holds is shown."""
    text = visible(text)
    if str(file) == "-":
        sys.stdout.write(text)
        return
    from oss_tools.checkpoints.files import replace_file

    replace_file(file, text)
    remark(f"{file} is written")


def print_sheets(sheets: Sequence[Sheet], verdicts: Sequence[Verdict]) -> None:
    """Tables as wide as the terminal, then what the gate says."""
    import shutil

    from oss_tools.report.table import text
    from oss_tools.report.table import visible as shown

    width = max(shutil.get_terminal_size((160, 24)).columns, NARROWEST)
    print("\n\n".join(text(sheet, width) for sheet in sheets))
    for verdict in verdicts:
        print()
        for outcome in verdict.outcomes:
            if outcome.status in ("fail", "noise"):
                mark = "FAILED" if outcome.status == "fail" else "noise "
                print(f"{mark}  {shown(outcome.rule.title)}: {shown(outcome.message)}")
                details = outcome.details if outcome.status == "fail" else ()
                print("".join(f"        {shown(line)}\n" for line in details), end="")
        print(verdict.summary)


def to_json(sheets: Sequence[Sheet], verdicts: Sequence[Verdict]) -> dict[str, object]:
    """The figures and verdicts as one object."""
    return {
        "schema": 1,
        "kind": "report",
        "sheets": [
            {
                "title": sheet.title,
                "models": [
                    {
                        "name": model.name,
                        "base": model.is_base,
                        "published": model.published,
                        "figures": {
                            name: {
                                "value": figure.value,
                                "low": figure.interval.low,
                                "high": figure.interval.high,
                                "noise": figure.noise,
                            }
                            for name, figure in model.figures.items()
                        },
                    }
                    for model in sheet.models
                ],
            }
            for sheet in sheets
        ],
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }
