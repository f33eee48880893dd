"""Sheets and verdicts as Markdown, for the summary page of a CI job."""

from __future__ import annotations

import re
from collections.abc import Sequence

from oss_tools.report.gates import Verdict
from oss_tools.report.metrics import metric_of
from oss_tools.report.sheet import Sheet
from oss_tools.report.table import cell, columns, is_best, is_noise, kind_of, legend, visible

MAX_TEXT = 1000  # characters of a name or message; GitHub shows a summary of 1 MiB or none of it
APART = "\u200b"  # a space without width
MARKUP = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is one
BEGINS_A_LIST = re.compile(r"^(\d{1,9}(?=[.)](?:\s|$))|(?=[-+=](?:[-+=\s]|$)))")  # or a rule, or underlines a heading
LINKS = (  # what GitHub makes links and mentions of without any markup, which no backslash prevents
    (re.compile(r"@(?=\w)"), f"@{APART}"),
    (re.compile(r"#(?=\d)"), f"#{APART}"),
    (re.compile(r"\b(GH-)(?=\d)", re.IGNORECASE), rf"\g<1>{APART}"),
    (re.compile(r":(?=//)"), f":{APART}"),
    (re.compile(r"\b(www)\.", re.IGNORECASE), rf"\g<1>{APART}."),
)
MARKS = {"pass": "✓", "noise": "≈", "fail": "✗", "skip": "–"}


def escaped(text: str) -> str:
    """Text that stays text, on one line: no markup, HTML, other column, link, picture, mention of a person or issue.

    Rules of https://github.github.com/gfm/ (backslash escapes, 2.4; autolinks, 6.9).
    """
    text = visible(text)
    text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    for found, instead in LINKS:
        text = found.sub(instead, text)
    return BEGINS_A_LIST.sub(r"\1\\", MARKUP.sub(r"\\\g<0>", text))


def markdown(sheets: Sequence[Sheet], verdicts: Sequence[Verdict] = ()) -> str:
    """The report, ending with a newline."""
    parts = []
    for number, sheet in enumerate(sheets):
        parts.append(f"## {escaped(sheet.title)}")
        if verdicts:
            parts.append(_verdict(verdicts[number]))
        parts += _sheet(sheet)
    return "\n\n".join(parts) + "\n"


def _sheet(sheet: Sheet) -> list[str]:
    metrics = columns(sheet)
    lines = [
        "| model | " + " | ".join(escaped(metric_of(metric).title) for metric in metrics) + " |",
        "|---|" + "---:|" * len(metrics),
    ]
    for model in sheet.models:
        cells = []
        for metric in metrics:
            text = cell(sheet, model, metric)
            text = f"**{text}**" if text and is_best(sheet, model, metric) else text
            cells.append(f"{text} ≈" if is_noise(model, metric) else text)
        lines.append(f"| {escaped(model.name)}{kind_of(model)} | " + " | ".join(cells) + " |")
    parts = ["\n".join(lines)]
    if line := legend(sheet, "**bold**:", "≈", escaped):
        parts.append(line)
    if sheet.case:
        parts.append(escaped(sheet.case.sentence))
    if wrong := [(m.name, f.message) for m in sheet.models if m.candidate for f in m.candidate.findings]:
        parts.append("\n".join(f"- **{escaped(name)}**: {escaped(message)}" for name, message in wrong))
    if sheet.remarks:
        parts.append("\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in sheet.remarks))
    return parts


def _verdict(verdict: Verdict) -> str:
    """The summary, what failed, and all checks behind a fold."""
    mark = MARKS["pass" if verdict.passed else "fail"]
    lines = [f"**{mark} {escaped(verdict.summary)}**", ""]
    for outcome in verdict.failed:
        lines.append(f"- {MARKS['fail']} **{escaped(outcome.rule.title)}**: {escaped(outcome.message)}")
        lines += [f"  - {escaped(line)}" for line in outcome.details]
    if verdict.failed:
        lines.append("")
    lines += ["<details><summary>All checks</summary>", "", "| | rule | figures |", "|---|---|---|"]
    lines += [f"| {MARKS[o.status]} | {escaped(o.rule.title)} | {escaped(o.message)} |" for o in verdict.outcomes]
    return "\n".join([*lines, "", "</details>"])
