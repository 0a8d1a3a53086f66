"""``bench`` measures what a configuration trains, and says what is wrong before it begins."""

import json
from itertools import chain

import pytest

from adapters_pl import LoRA, save_adapter
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.commands import bench
from adapters_pl.cli.main import main
from tests.conftest import tiny_model


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


def test_a_saved_adapter_reaches_the_job(make_base, rows_file, tmp_path):
    model, adapter = tiny_model("llama"), LoRA(rank=3)
    adapter.attach_to(model)
    save_adapter(model, adapter, tmp_path / "adapter")
    data = ["--data", "InstructionJSON", "--data.test_path", str(rows_file)]
    words = ["--eval", "--model.base", str(make_base()), "--adapter_path", str(tmp_path / "adapter"), *data]
    job = bench._build(CommandLine.read("bench", words), 1)
    assert [(type(adapter).__name__, adapter.rank) for adapter in job.saved.adapters] == [("LoRA", 3)]
    assert job.adapters == []


def test_answers_are_the_same_whoever_writes_them(make_base, rows_file, tmp_path, capfd):
    base, out = make_base(), tmp_path / "bench.json"
    more = ["--data.test_path", str(rows_file), "--data.limit_test", "10", "--data.max_new_tokens", "6"]
    more += ["--data.eval_batch_size", "3", "--rounds", "2", "--against", "reference", "--json", str(out), "--eval"]
    assert main(words(base, rows_file, *more)) == 0
    result = json.loads(out.read_text())["results"][0]
    assert list(result["arms"]) == ["generate", "adapters-pl", "reference"]
    assert [result["arms"][arm]["rows"] for arm in result["arms"]] == [10, 10, 2]
    assert result["ratios"]["generate"]["same"] == 1.0
    assert result["ratios"]["reference"]["same"] is None
    first, second = result["steps"]["adapters-pl"]
    assert first["answers"] == second["answers"]
    assert all(first["answers"])
    assert first["tokens"] == result["steps"]["generate"][0]["tokens"] > 0
    assert "adapters-pl over generate:" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--eval", "--against", "peft"], "--against peft: there is only reference, the paper's way"),
        (["--eval", "--data.protocol", "loglikelihood", "--against", "peft"], "--against peft: there is nothing more"),
        (["--eval", "--data.temperature", "0.5", "--data.samples", "2"], "bench --eval compares greedy answers"),
        (["--eval", "--adapter_path", "nowhere"], "--adapter_path says which adapter it holds"),
        (["--eval", "--ckpt_path", "last"], "bench takes no --ckpt_path"),
        (["--adapter_path", "nowhere"], "bench takes no --adapter_path"),
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
    for name in ("measure", "measure_answers"):
        monkeypatch.setattr(bench, name, lambda *_: pytest.fail("nothing should be measured"))
    base = words(make_base(), rows_file)
    if more[0] == "--adapter":
        base = [word for word in base if word not in ("--adapter", "LoRA", "--adapter.rank", "4")]
        base = [word for word in base if word not in ("--adapter.dropout", "0")]
    assert main([*base, *more]) == 1
    assert said in capsys.readouterr().err
