"""``bench`` measures what a configuration trains, and says what is wrong before it begins."""

import json
from itertools import chain

import pytest

from adapters_pl.cli import bench
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.main import main


def words(base, rows_file, *more):
    data = ["--data", "InstructionJSON", "--data.path", str(rows_file), "--data.batch_size", "2"]
    adapter = ["--adapter", "LoRA", "--adapter.rank", "4", "--adapter.dropout", "0"]
    return ["bench", "--model.base", str(base), *adapter, *data, "--trainer.accelerator", "cpu", *more]


def test_the_arms_take_turns_and_their_figures_are_written(make_base, rows_file, tmp_path, capfd):
    out = tmp_path / "bench.json"
    more = ["--rounds", "2", "--steps", "2", "--json", str(out)]
    assert main(words(make_base(), rows_file, *more)) == 0
    printed = capfd.readouterr().out
    result = json.loads(out.read_text())["results"][0]
    assert list(result["arms"]) == ["floor", "adapters-pl"]
    assert "adapters-pl over floor:" in printed
    ours, floor = (result["steps"][arm] for arm in ("adapters-pl", "floor"))
    assert [len(turn) for turn in ours] == [2, 2]
    assert [step["tokens"] for step in chain(*ours)] == [step["tokens"] for step in chain(*floor)]
    assert ours[0][0]["loss"] != floor[0][0]["loss"]
    median, low, high = result["ratios"]["floor"]["seconds"]
    assert 0 < low <= median <= high
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "sums.json"}


def test_a_scaling_lays_each_value_over_the_command_line():
    line = CommandLine.read("bench", ["--data.batch_size", "2", "--scaling", "data.batch_size=4,8"])
    scaled = bench._scaled(line, "data.batch_size=4,8")
    assert [title for title, _ in scaled] == ["data.batch_size 4", "data.batch_size 8"]
    assert [one.typed("data.batch_size") for _, one in scaled] == ["4", "8"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--against", "unsloth"], "--against unsloth: there is only peft"),
        (["--scaling", "data.batch_size"], "give a key and its values"),
        (["--scaling", "data.batch_size=2,0"], "data.batch_size is 0"),
        (["--scaling", "data.batchsize=2,4"], "unknown key 'data.batchsize'"),
        (["--rounds", "0"], "rounds"),
        (["--against", "peft", "--optimizer", "SGD", "--optimizer.lr", "0.1"], "leave out --optimizer"),
        (["--model.quantization", "8bit"], "leave --model.quantization out"),
        (["--json", "."], "this is a folder; name a file in it"),
        (["--json", "nowhere/at/all.json"], "there is no such folder; make it first"),
        (["--ckpt_path", "last"], "bench takes no --ckpt_path: it measures a new training"),
        (["--adapter", "null"], "Nothing to measure: there is no adapter"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_starts(make_base, rows_file, capsys, monkeypatch, more, said):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("nothing should be measured"))
    base = words(make_base(), rows_file)
    if more[0] == "--adapter":
        base = [word for word in base if word not in ("--adapter", "LoRA", "--adapter.rank", "4")]
        base = [word for word in base if word not in ("--adapter.dropout", "0")]
    assert main([*base, *more]) == 1
    assert said in capsys.readouterr().err
