"""A table in each of its forms."""

from __future__ import annotations

from adapters_pl.reports.tables import Column, Table

COLUMNS = (Column("run"), Column("accuracy, %", "percent", "accuracy"), Column("peak, GiB", "gib", "peak_bytes"))


def test_shown_rounded_and_written_whole():
    table = Table("t", "T", COLUMNS, [["a", 0.123456789, 2**30], ["b", None, None]])
    assert table.shown() == [["a", "12.3", "1.00"], ["b", "–", "–"]]
    assert table.csv() == "run,accuracy,peak_bytes\na,0.123456789,1073741824\nb,,\n"


def test_a_spreadsheet_takes_no_text_for_a_formula_and_every_number_for_one():
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "a=1", 'quote"comma,']
    table = Table("t", "T", (Column("run", key="=x"), Column("gain", "points")), [[name, -0.5] for name in names])
    assert table.csv().startswith("'=x,gain\n")
    lines = table.csv().splitlines()[1:]
    assert lines[0].startswith("'=cmd")
    assert [line[0] for line in lines[:5]] == ["'"] * 5  # a tab is no part of a cell
    assert lines[5:] == ["a=1,-0.5", '"quote""comma,",-0.5']


def test_latex_takes_every_name_as_it_is():
    table = Table(
        "t", "T", (Column("100% of_it"), Column("n"), Column("n", "count")), [["a_b%&#$^~\\{}", "", 1234], [None] * 3]
    )
    text = table.latex()
    assert r"a\_b\%\&\#\$\textasciicircum \textasciitilde \textbackslash \{\}" in text
    assert r"100\% of\_it" in text
    assert "1,234" in text
    assert "-- & -- & --" in text
    assert text.count(r"\\") == 3
