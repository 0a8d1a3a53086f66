"""One report of everything that can be in one, written once."""

from __future__ import annotations

import pytest

from adapters_pl.cli.main import main
from adapters_pl.runs.run import Run
from tests.helpers.runs import config, records, write_run, write_study

#: What a model may write, and what a stranger may call a set or a run.
HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x.png onerror=alert(1)> $\\frac{1}{0}$ {{ 7*7 }}'
NAMES = ["=1+1", "测试 🙂 $x$", "a_b%&#"]


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """The folder of runs, and that of the report."""
    place = tmp_path_factory.mktemp("report")
    runs = place / "runs"
    losses = [(step, 2.0 / (step + 1), 1.0 / (step + 1) if step % 25 == 24 else None) for step in range(100)]
    sets = {"sums": records("++++-+-+" * 5, base="+-------" * 5), NAMES[0]: records("+--+", NAMES[0])}
    where = {"sums": "in", NAMES[0]: "out"}
    general = {"text": "a book", "tokens": 4096, "loss": 3.25, "base_loss": 3.0}
    write_run(runs / "lora-1", sets, losses=losses, distribution=where, general_text=general)
    bad = {"sums": records("+-+-+-++" * 5, output=HOSTILE + " 答案是 {} 🙂"), NAMES[0]: records("-+-+", NAMES[0])}
    series = config("SeriesAdapter", bottleneck=64)
    write_run(runs / NAMES[1], bad, about=series, parameters=250_000, losses=losses[:7], distribution=where)
    ia3 = config("IA3", base="<i>base")
    write_run(runs / NAMES[2], {"other": records("+-")}, about=ia3, parameters=30)
    write_run(runs / "empty-1", {})
    Run(runs / "crashed-1").write("crash.log", "Traceback")
    cut = write_run(runs / "cut-1", {"sums": records("+")})
    (cut.path / "results.json").write_text('{"sets": {"sums"')
    axes = {"adapter.rank": [1, 8], "adapter.placement": ["attn", "both"], "seed_everything": [0, 1]}
    trials = [
        (
            {"adapter.rank": rank, "adapter.placement": where, "seed_everything": seed},
            "complete",
            {"sums": records(marks)},
        )
        for rank, where, seed, marks in [
            *((1, "attn", 0, "+---"), (1, "attn", 1, "++--"), (8, "attn", 0, "+++-"), (8, "attn", 1, "++++")),
            *((1, "both", 0, "++--"), (8, "both", 0, "++++")),
        ]
    ]
    write_study(
        runs / "sizes", axes, [*trials, ({"adapter.rank": 8}, "pruned", {}), ({"adapter.rank": 1}, "failed", {})]
    )
    names = ["lora-1", *NAMES[1:], "empty-1", "crashed-1", "cut-1", "sizes"]
    assert main(["report", *names, "--root", str(runs), "--out", str(place / "out")]) == 0
    return runs, place / "out"
