"""The report says what the runs' own files say, and is neither written over something nor left half written."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from adapters_pl.cli.main import main
from adapters_pl.evaluation.metrics import mean_interval
from adapters_pl.evaluation.published import published_rows
from adapters_pl.evaluation.report import summarize
from adapters_pl.evaluation.results import keep_test
from adapters_pl.reports import page
from adapters_pl.reports.collect import read_run_directory, read_study
from adapters_pl.reports.drawing import styled
from adapters_pl.reports.page import make_sections
from adapters_pl.reports.section import Figure
from adapters_pl.reports.studies import study_section
from adapters_pl.reports.tables import Table
from adapters_pl.runs.at_once import directory_at_once
from tests.helpers.runs import config, records, write_run, write_study
from tests.reports.conftest import HOSTILE, NAMES


class _Page(HTMLParser):
    """The elements, the addresses in them, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.addresses, self.ids, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [value for key, value in attrs if key == "id"]
        assert not [key for key, _ in attrs if key.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def seen(reported):
    return _Page((reported[1] / "report.html").read_text(encoding="utf-8"))


def table(out, name):
    with (out / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_the_numbers_of_results_json(reported):
    runs, out = reported
    rows = [row for row in table(out, "accuracy") if row["n"]]
    expected = 0
    for run in ("lora-1", *NAMES[1:]):
        results = json.loads((runs / run / "results.json").read_text())
        for name, figures in results["sets"].items():
            shown = f"'{name}" if name.startswith("=") else name
            (row,) = [row for row in rows if (row["run"], row["set"]) == (run, shown)]
            assert float(row["accuracy"]) == figures["accuracy"]
            assert [float(row["low"]), float(row["high"])] == figures["interval"]
            assert row["base_accuracy"] == ("" if figures["base_accuracy"] is None else str(figures["base_accuracy"]))
            assert int(row["n"]) == figures["n"]
            expected += 1
    assert len(rows) == expected == 5


def test_costs_and_losses_are_those_of_the_runs_files(reported):
    runs, out = reported
    rows = {row["run"]: row for row in table(out, "cost")}
    took = json.loads((runs / NAMES[1] / "fit.json").read_text())
    assert rows[NAMES[1]]["trainable_parameters"] == "250000"
    assert rows[NAMES[1]]["peak_bytes"] == str(took["peak_bytes"])
    assert float(rows[NAMES[1]]["seconds"]) == took["seconds"]
    (row,) = table(out, "forgetting")
    assert (row["base_loss"], row["loss"], row["change"], row["tokens"]) == ("3.0", "3.25", "0.25", "4096")
    curve = [(row["step"], row["value"]) for row in table(out, "learning") if row["run"] == NAMES[1]]
    assert curve == [(f"{step}.0", str(2.0 / (step + 1))) for step in range(7)]
    # A longer one as means of equal parts: what is logged a hundred times has the same mean in sixty points.
    long = [row for row in table(out, "learning") if row["run"] == "lora-1" and row["curve"] == "train_loss"]
    assert len(long) == 60
    assert float(long[0]["value"]) == 2.0


def test_a_study_is_summed_up_over_seeds(reported):
    _, out = reported
    rows = {(row["adapter.rank"], row["other_keys"]): row for row in table(out, "study-1-1")}
    found = {key: (row["seeds"], row["mean"], row["least"], row["most"]) for key, row in rows.items()}
    assert found == {
        ("1", "placement attn"): ("2", "0.375", "0.25", "0.5"),
        ("8", "placement attn"): ("2", "0.875", "0.75", "1.0"),
        ("1", "placement both"): ("1", "0.5", "0.5", "0.5"),
        ("8", "placement both"): ("1", "1.0", "1.0", "1.0"),
    }
    one, two = rows["1", "placement both"], rows["1", "placement attn"]
    assert (one["sd_over_seeds"], one["95%_low"], one["95%_high"]) == ("", "", "")
    assert [float(two["95%_low"]), float(two["95%_high"])] == list(mean_interval([0.25, 0.5])[1:])
    all_of_it = {row["combination"]: (row["seeds"], row["mean"]) for row in table(out, "study-1")}
    assert all_of_it == {f"rank {rank}, {where}": values[:2] for (rank, where), values in found.items()}
    assert [row["state"] for row in table(out, "study-1-trials")] == ["complete"] * 6 + ["pruned", "failed"]


def test_keys_that_only_some_trials_have(tmp_path):
    """The methods of a study need not have the same arguments, and only what differs in one key alone makes a curve."""
    values = [("IA3", None, None), *(("LoRA", "rank", rank) for rank in (4, 16))]
    values += [("Series", "bottleneck", size) for size in (64, 128)]
    trials = [
        ({"adapter": name, **({f"adapter.{key}": value} if key else {})}, "complete", {"sums": records("+-")})
        for name, key, value in values
    ]
    axes = {"adapter": ["LoRA", "IA3", "Series"], "adapter.rank": [4, 16], "adapter.bottleneck": [64, 128]}
    write_study(tmp_path / "runs/s", axes, trials)
    assert main(["report", "s", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    combinations = [row["combination"] for row in table(tmp_path / "out", "study-1")]
    sizes = ["LoRA, rank 4", "LoRA, rank 16", "Series, bottleneck 64", "Series, bottleneck 128"]
    assert combinations == ["adapter IA3", *(f"adapter {size}" for size in sizes)]
    assert [row["adapter.rank"] for row in table(tmp_path / "out", "study-1-2")] == ["4", "16"]
    said = (tmp_path / "out/report.html").read_text()
    assert "No curve along adapter: no two trials differ in it alone." in said


def test_trials_that_one_key_more_tells_apart_are_not_one(tmp_path):
    values = [{"adapter": "LoRA"}, {"adapter": "LoRA", "adapter.dora": True}, {"adapter": "IA3", "model.lr": 0.01}]
    sets = {f"set-{number}": records("+-" + "+" * number) for number in range(6)}
    trials = [({**each, "seed_everything": seed}, "complete", sets) for each in values for seed in (1, 2)]
    write_study(tmp_path / "s", {"adapter": ["LoRA", "IA3"], "adapter.dora": [True], "model.lr": [0.01]}, trials)
    section = study_section(read_study(tmp_path / "s"), 1)
    (every,) = [part for part in section.parts if isinstance(part, Table) and part.name == "study-1"]
    combinations = ["adapter IA3", "adapter LoRA", "adapter LoRA, dora true"]
    # Many sets are too many for a figure, but not for its table.
    shown = ["average of 6 sets", *sets]
    assert sorted(row[:3] for row in every.rows) == sorted([one, name, 2] for one in shown for name in combinations)
    assert {row[0]: row[3] for row in every.rows}["set-5"] == 6 / 7


def test_a_line_joins_numbers_and_no_methods(tmp_path):
    trials = [
        ({"adapter": name, "adapter.rank": rank}, "complete", {"sums": records("+-")})
        for name in ("A", "B")
        for rank in (1, 2)
    ]
    write_study(tmp_path / "s", {"adapter": ["A", "B"], "adapter.rank": [1, 2]}, trials)
    section = study_section(read_study(tmp_path / "s"), 1)
    figures = {part.name: part for part in section.parts if isinstance(part, Figure)}
    with styled():
        joined = {
            name: any(line.get_linestyle() != "None" for line in figure.draw().axes[0].lines)
            for name, figure in figures.items()
        }
    assert (joined["study-1-1"], joined["study-1-2"]) == (False, True)


def test_in_and_out_of_distribution(reported):
    rows = {(row["run"], row["distribution"]): row["accuracy"] for row in table(reported[1], "distribution")}
    assert rows["lora-1", "in"] == "0.75"
    assert rows["lora-1", "out"] == "0.5"


def test_the_paired_test_is_that_of_compare(reported):
    (row,) = [row for row in table(reported[1], "paired") if row["set"] == "sums"]
    assert (row["run"], row["rows"], row["only_this_right"], row["only_first_right"]) == (NAMES[1], "40", "10", "15")
    assert float(row["difference"]) == -0.125


def test_what_was_published_stands_beside_ours(tmp_path):
    about = config(base="yahma/llama-7b-hf", rank=32)
    sets = {"AddSub": records("+-+-", "AddSub"), "mine": records("+-")}
    run = write_run(tmp_path / "runs/a-1", sets, about=about, protocol="llm_adapters")
    assert main(["report", "a-1", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out", "published")
    known = [
        row for row in published_rows() if (row.base, row.method) == ("LLaMA-7B", "LoRA") and "AddSub" in row.accuracy
    ]
    assert [(row["source"], float(row["published"])) for row in rows] == [
        (r.source, r.accuracy["AddSub"]) for r in known
    ]
    ours = run.results()["sets"]["AddSub"]["accuracy"]
    assert {(row["set"], float(row["ours"])) for row in rows} == {("AddSub", ours)}
    assert "crosses are the published row" in (tmp_path / "out/report.html").read_text()


def test_every_figure_is_there_in_each_form_and_has_its_table(reported, seen):
    _, out = reported
    names = {path.stem for path in (out / "figures").glob("*.svg")}
    assert names == {"accuracy", "distribution", "cost", "forgetting", "learning", "study-1", "study-1-1", "study-1-2"}
    assert names == {path.stem for path in (out / "figures").glob("*.png")}
    assert names <= {path.stem for path in (out / "tables").glob("*.csv")}
    assert seen.elements.count("svg") == len(names)
    assert len(seen.ids) == len(set(seen.ids))
    for path in (out / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_what_models_and_strangers_wrote_is_text(reported, seen):
    _, out = reported
    assert seen.text.count(HOSTILE) >= 5  # in the rows that differ, and word by word
    assert not {"script", "img", "i", "iframe", "object", "style"} & set(seen.elements[seen.elements.index("body") :])
    assert "答案是" in seen.text
    assert "<i>base" in seen.text
    svg = ElementTree.parse(out / "figures" / "accuracy.svg")
    assert "B  测试 🙂 $x$" in [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "mathdefault" not in "".join(path.read_text() for path in (out / "figures").glob("*.svg"))


def test_nothing_is_loaded_from_anywhere(seen):
    ours = re.compile(r"#[\w-]+|figures/[\w-]+\.(svg|png)|tables/[\w-]+\.(csv|tex)|data:,")
    assert [address for address in seen.addresses if not ours.fullmatch(address)] == []


def test_links_lead_to_files_and_places_that_are_there(reported, seen):
    for address in seen.addresses:
        if address.startswith("#"):
            assert address[1:] in seen.ids
        elif address != "data:,":
            assert (reported[1] / address).is_file()


def test_what_is_missing_is_said_in_its_place(seen):
    said = " ".join(seen.text.split())
    assert "Without test results: D (empty-1), E (crashed-1), F (cut-1) (adapters-pl test" in said
    assert "E: a command on this run crashed; its crash.log says where." in said
    assert "F: cut-1/results.json: cannot be read" in said
    assert "Not tested on the sets of A (sums, =1+1), and without a point: C (a_b%&#)." in said
    assert "C has no tested row in common with A." in said
    assert "8 trials: 6 complete, 1 failed, 1 pruned." in said
    assert "Nothing recorded of what training took (no fit.json): E (crashed-1)." in said


def test_runs_and_studies_of_little_are_reported_too(tmp_path, capsys):
    write_run(tmp_path / "runs/lone-1", {"sums": records("+")})
    write_study(tmp_path / "runs/none", {"adapter.rank": [1]}, [])
    write_study(tmp_path / "runs/one", {"adapter.rank": [1]}, [({"adapter.rank": 1}, "complete", {})])
    (tmp_path / "runs/one/study.yaml").write_text("a: [")
    for name in ("lone-1", "none", "one"):
        assert main(["report", name, "--root", str(tmp_path / "runs"), "--out", str(tmp_path / name)]) == 0
    text = (tmp_path / "one/report.html").read_text()
    assert "No complete trial was tested or validated, so there is no curve." in text
    assert "study.yaml" in text
    assert "0 trials: none yet." in (tmp_path / "none/report.html").read_text()
    assert "It takes two runs with predictions to compare their rows." in (tmp_path / "lone-1/report.html").read_text()


def test_the_tests_by_one_protocol_are_reported_where_others_stand(tmp_path, capsys):
    for name, written, scored in (("a-1", "++-", "+--"), ("b-1", "+--", "-++")):
        run = write_run(tmp_path / "runs" / name, {"sums": records(written)})
        marks = {"sums": records(scored, output="")}
        figures = {**summarize(marks["sums"], 1.0, 100), "settings": {"protocol": "loglikelihood"}}
        keep_test(run, {"sums": figures}, marks)
    write_run(tmp_path / "runs/c-1", {"sums": records("+++")})
    names, where = ["a-1", "b-1", "c-1", "--root", str(tmp_path / "runs")], tmp_path / "out"
    assert main(["report", *names, "--out", str(where), "--protocol", "loglikelihood"]) == 0
    found = [(row["run"], float(row["accuracy"])) for row in table(where, "accuracy") if row["set"] == "sums"]
    assert found == [("a-1", 1 / 3), ("b-1", 2 / 3)]
    (pair,) = table(where, "paired")
    assert (pair["only_this_right"], pair["only_first_right"]) == ("2", "1")
    assert "3 rows that both answered" in (where / "report.html").read_text()


def test_what_is_no_run_is_one_line_that_lists_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/lora-1", {})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").touch()
    for name, said in [
        ("notes", "notes is no run and no study; there is a.txt in it."),
        ("runs", "runs is no run but a folder of them; name some of them: lora-1"),
        ("lora1", "'lora1' is no run and no study, here or in runs: did you mean 'lora-1'?"),
    ]:
        assert main(["report", name, "--out", "out"]) == 1
        assert capsys.readouterr().err == f"error: {said}\n"
    assert not (tmp_path / "out").exists()


def test_without_the_extra_one_line_names_it(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs/a-1", {})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "a-1", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 1
    said = "error: report draws with matplotlib, which is not here: pip install 'adapters-pl[report]'\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_report_is_replaced_and_only_by_a_whole_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a-1", {"sums": records("+-")})
    call = ["report", "a-1", "--out", "out"]
    (tmp_path / "out").mkdir()
    assert main(call) == 0
    first = (tmp_path / "out/report.html").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(page, "drawn", fail)
        assert main(call) == 1
    assert "--out out cannot be made (No space left on device)" in capsys.readouterr().err
    assert (tmp_path / "out/report.html").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out", "runs"]

    replace = os.replace

    def refuse(source, target):
        if target == Path("out"):
            refused.append(source)
            if len(refused) == 1:
                raise OSError(13, "Permission denied")
        replace(source, target)

    refused = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert main(call) == 1
    assert len(refused) == 2
    assert (tmp_path / "out/report.html").read_bytes() == first

    (tmp_path / "out/tables/old.csv").touch()
    assert main(call) == 0
    assert not (tmp_path / "out/tables/old.csv").exists()
    (tmp_path / "out/mine.txt").touch()
    assert main(call) == 1
    assert "--out out exists and is not empty" in capsys.readouterr().err
    assert (tmp_path / "out/mine.txt").exists()


def test_of_very_many_sets_and_keys_the_first_are_drawn_and_the_table_has_all(tmp_path):
    run = write_run(tmp_path / "a-1", {})
    run.write("results.json", {"sets": {f"s{n}": {"n": 2, "accuracy": 0.5} for n in range(40)}})
    sections = {section.id: section for section in make_sections([read_run_directory(run.path)], 0)}
    assert "Of 40 sets the first 24 are drawn; the table has all." in sections["accuracy"].missing
    figure, table = sections["accuracy"].parts
    with styled():
        assert len(figure.draw().axes) == 25  # and their average
    assert len(table.rows) == 41
    trials = [
        ({f"k{key}": key * trial for key in range(1, 40)}, "complete", {"sums": records("+-")}) for trial in (1, 2)
    ]
    write_study(tmp_path / "s", {}, trials)
    [_, section, *_] = make_sections([read_study(tmp_path / "s")], 0)
    assert "Of 39 keys with several values the first 12 have curves." in section.missing


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a-1", {"sums": records("+-")})
    assert main(["report", "~nobody-of-this-name/x", "--out", "out"]) == 1
    assert "'~nobody-of-this-name/x' is no run and no study" in capsys.readouterr().err
    assert directory_at_once("~nobody-of-this-name", lambda folder: None, "report") == Path("~nobody-of-this-name")
