"""Tables within the width of a terminal."""

from __future__ import annotations

import pytest

from oss_tools.tables import cut_in_the_middle, fitted, print_facts, widest

HEADERS = ("format", "files", "bits", "memory", "fits", "tokens/s")
ROWS = [[f"recipe-{n}", f"{n}.5 MB", "16.00", "212 MB", "fits", "1,160–4,750"] for n in range(4)]


def test_a_cut_text_keeps_its_beginning_and_its_end() -> None:
    assert cut_in_the_middle("abcdefghij", 10) == "abcdefghij"
    assert cut_in_the_middle("abcdefghij", 5) == "ab…ij"
    assert cut_in_the_middle("abcdefghij", 6) == "abc…ij"
    assert [len(cut_in_the_middle("abcdefghij", n)) for n in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
@pytest.mark.parametrize("count", [1, 4, 200])
def test_every_figure_is_there_at_every_width(width: int, count: int) -> None:
    rows = [[f"m{n}", *ROWS[0][1:]] for n in range(count)]
    table = fitted(rows, HEADERS, width, range(1, 6))
    assert widest(table) <= width
    words = table.split()
    for name, *_ in rows:
        assert name in words
    assert table.count("1,160–4,750") == count


def test_long_names_are_cut_before_a_table_is_turned() -> None:
    rows = [["a" * 50 + f"-{n}", "1"] for n in range(3)]
    table = fitted(rows, ("name", "n"), 40, (1,))
    assert widest(table) <= 40
    assert table.splitlines()[0].split() == ["name", "n"]
    assert [line.split()[0][-2:] for line in table.splitlines()[2:]] == ["-0", "-1", "-2"]


def test_facts_go_on_below_themselves(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_facts({"model": "tiny", "choice": "word " * 20, "nothing": None})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model   tiny"
    assert max(map(len, lines)) <= 40
    assert all(line.startswith("        ") for line in lines[2:])
    assert " ".join(lines[1:]).split() == ["choice", *["word"] * 20]
