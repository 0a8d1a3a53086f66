"""Every command line in README and CONTRIBUTING does what it says, on tiny bases in the places of large ones."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from adapters_pl.cli.commands import base as bases
from adapters_pl.cli.commands import bench, study
from adapters_pl.cli.commands import data as command
from adapters_pl.cli.main import main
from adapters_pl.data import SETS, SUITES
from adapters_pl.data.published import sources

ROOT = Path(__file__).resolve().parents[1]

#: Less of everything, on one CPU process.
LESS = [
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "1"),
    *("--trainer.strategy", "auto", "--trainer.enable_progress_bar", "false"),
    *("--data.max_new_tokens", "2", "--data.limit_test", "2"),
]
LESS_TRAINING = ["--trainer.max_steps", "2", "--trainer.precision", "32-true", "--data.limit_train", "12"]


def commands(name):
    """The command lines of a page's shell blocks, continued lines joined, without their comments."""
    text = (ROOT / name).read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def rows(name):
    """Eight rows of a published set's kind."""
    kind = SETS[name]
    return [
        {"instruction": f"Which of {n} is it?", "output": f"It is {n}.", "answer": (*kind.options, str(n))[0]}
        for n in range(8)
    ]


@pytest.fixture
def place(tmp_path, monkeypatch, make_base):
    """A folder with everything that the commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAPTERS_PL_DATA", raising=False)
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "download", lambda source, target, announce: target)  # there is no network here
    monkeypatch.setattr(bases, "fetch", lambda base: base.path)
    for kind in SETS.values():
        for file in filter(None, (kind.spec.train, kind.spec.test)):
            path = Path("DATA", file)
            path.parent.mkdir(parents=True, exist_ok=True)
            own = [{**row, "original_text": row["instruction"], "ans": row["answer"]} for row in rows(kind.set_name)]
            training = [{**row, "instruction": f"{kind.set_name} {n}: how many?"} for n, row in enumerate(own * 3)]
            path.write_text(json.dumps(training if "test" not in path.name else own))
    Path("my-llama").symlink_to(make_base())
    Path("mine.json").write_text(
        json.dumps([{**row, "instruction": f"Mine {n}"} for n, row in enumerate(rows("SVAMP"))])
    )
    Path("questions.jsonl").write_text('{"instruction": "What is 1 plus 1?"}\n')
    Path("mine.py").write_text("from adapters_pl import LoRA\n\n\nclass MyAdapter(LoRA):\n    pass\n")


def with_less(words, base):
    """The words of ``adapters-pl`` with the base and the amount of work put in place of what they say."""
    first, *rest = words
    if first not in ("fit", "test", "validate", "predict", "plan", "bench"):
        return words
    if "--config" in rest and "quickstart.yaml" not in rest and "--model.base" not in rest:
        rest += ["--model.base", base]
    if first == "plan":
        return [first, *rest]
    if first == "bench":
        once = ["--rounds", "1", "--steps", "1", "--data.limit_train", "12"]
        return [first, *rest, *once, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    if first == "fit":
        rest += LESS_TRAINING
        if "--data" not in rest and "--ckpt_path" not in rest:
            rest += ["--data.root", "DATA"] if "--data.root" not in rest and "quickstart.yaml" not in rest else []
    return [first, *rest, *LESS]


@pytest.mark.filterwarnings("ignore")
def test_every_documented_command_works(place, make_base, capsys, monkeypatch):
    # What it measures has tests of its own; here it is read, built and printed.
    step = {"step_seconds": 1.0, "tokens_per_second": 1.0, "padding": 0.0, "parts": {}, "peak_bytes": 1, "loss": 1.0}
    ratio = {"seconds": [1.0, 1.0, 1.0], "memory": 1.0}
    measured = {"arms": {"floor": step}, "ratios": {"floor": ratio}, "steps": {}}
    monkeypatch.setattr(bench, "measure", lambda build, *_: build(1) and measured)
    answers = {"row_seconds": 1.0, "tokens_per_second": 1.0, "rows": 1, "peak_bytes": 1}
    answered = {"arms": {"generate": answers}, "ratios": {"generate": {**ratio, "same": 1.0}}, "steps": {}}
    monkeypatch.setattr(bench, "measure_answers", lambda build, *_: build(1) and answered)
    monkeypatch.setattr(study, "work", lambda *_: None)  # a study is read, looked at and begun
    base = str(make_base())
    # What the commands take to be there: two tested runs by the names that are compared.
    for method in ("lora", "series"):
        assert main(with_less(["fit", "--config", f"{method}_llama7b.yaml", "--data.root", "DATA"], base)) == 0
        assert main(with_less(["test", "--data", "GSM8K", "--data.root", "DATA"], base)) == 0
    ran = 0
    for page in ("README.md", "CONTRIBUTING.md"):
        for words in commands(page):
            program, *rest = words
            if program == "make":
                done = subprocess.run(["make", "-n", "-C", str(ROOT), *rest], capture_output=True, text=True)
                assert done.returncode == 0, (words, done.stderr)
                continue
            if program in ("torchrun", "srun"):
                rest = words[words.index("adapters-pl") + 1 :]
            elif program != "adapters-pl":
                pytest.fail(f"{page}: this test does not know how to run {words}")
            rest = ["runs/lora_llama7b-1/adapter" if word == "DIR_OR_HUB_ID" else word for word in rest]
            capsys.readouterr()
            assert main(with_less(rest, base)) == 0, (page, words, capsys.readouterr().err)
            ran += 1
    assert ran >= 25


def test_predict_takes_a_file_after_the_quickstart(place, capsys):
    assert main(["fit", "--config", "quickstart.yaml", *LESS_TRAINING, *LESS, "--data.train_rows", "40"]) == 0
    assert main(["predict", "--data.test_path", "questions.jsonl", *LESS]) == 0
    [line] = Path("runs/quickstart-1/predicted/questions.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "questions-0"
    assert main(["test", "--data.test_path", "mine.json", *LESS]) == 0
    assert json.loads(Path("runs/quickstart-1/results.json").read_text())["sets"]["mine"]["n"] == 2


@pytest.mark.parametrize("name", ["GSM8K", "gsm8k", "ARCChallenge", "ARC-Challenge", "Commonsense", "Arithmetic"])
def test_a_set_is_known_by_its_class_its_folder_and_its_suite(place, make_base, name, capsys):
    published = SUITES.get(name) or [SETS[n].set_name for n in SETS if name in (n, SETS[n].__name__)]
    files = [SETS[single].spec.test for single in published]
    assert main(["data", "fetch", name]) == 0
    fetched = capsys.readouterr().out
    assert all(sources()[file].path in fetched for file in files)
    assert main(["data", "show", name, "--root", "DATA", "--rows", "1"]) == 0
    own = ["--model.base", str(make_base()), "--data.root", "DATA", "--data.skip_missing", "true", *LESS]
    assert main(["test", *own, "--data", name]) == 0
    assert main(["test", *own, "--data", "SVAMP", "--data.test_sets", f"[{name}]"]) == 0
    for run in ("test-1", "test-2"):
        assert list(json.loads(Path("runs", run, "results.json").read_text())["sets"]) == list(published)
