"""What the commands print: each line says something of the run, and nothing else is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

FIT = [
    *("fit", "--config", "quickstart.yaml", "--trainer.max_steps", "2", "--data.train_rows", "40"),
    *("--data.limit_test", "4", "--data.max_new_tokens", "4", "--model.activation_checkpointing", "true"),
    *("--trainer.accelerator", "cpu"),
]

#: What stands on stderr and on stdout, a pattern for each kind of line.
SEED = r"Seed set to 42"
HELD_OUT = r"40 rows: 4 are held out for validation instead of 100"
BORDER = r"[┏┡┃├│└].*"
OF_FIT = (
    {
        SEED,
        HELD_OUT,
        r"contamination: none of \d+ training rows is among the \d+ test rows of .*",
        r"LoRA 'default': 20 modules .*, 137,216 trainable parameters, .*",
        r"`Trainer\.fit` stopped: `max_steps=\d` reached\.",
    },
    {r"memory: about .*; fits", r"adapter: .*/adapter", r"run: .*runs/quickstart-\d  \(test it with: .*\)"},
)
OF_RESUMED = (OF_FIT[0], {*OF_FIT[1], r"resuming from .*/last\.ckpt"})
OF_TEST = (
    {SEED},
    {r"test: .*/last\.ckpt", r"Accuracy in %, LoRA 'default' *", BORDER, r"results: .*/results\.json"},
)
OF_VALIDATE = ({SEED, HELD_OUT}, {r"validate: .*/last\.ckpt", BORDER})
OF_PREDICT = ({SEED}, {r"predict: .*/last\.ckpt", r"predictions: .*/predicted/questions\.jsonl"})


#: Runs commands in one process, which imports everything once, and puts a line between what they print.
PROGRAM = """
import json, sys
from adapters_pl.cli.main import main
for words in json.loads(sys.argv[1]):
    print("=====", main(words), flush=True)
    print("=====", file=sys.stderr, flush=True)
"""


def printed_by(folder, commands):
    """What each command writes to stderr and to stdout, line by line."""
    own = {"COLUMNS": "120", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    environment = {**os.environ, **own, "ADAPTERS_PL_CACHE": str(folder / "cache")}
    words = json.dumps([[*command, "--trainer.enable_progress_bar", "false"] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.stdout.count("===== 0\n") == len(commands), done.stderr
    streams = (re.split(r"^=====.*\n", stream, flags=re.MULTILINE) for stream in (done.stderr, done.stdout))
    return [[[line for line in part.splitlines() if line] for part in both] for both in zip(*streams, strict=True)]


def test_each_line_says_something_of_the_run(tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"instruction": "What is 1 plus 1?"}\n')
    commands = [
        (FIT, OF_FIT),
        (["test"], OF_TEST),
        (["validate"], OF_VALIDATE),
        (["predict", "--data.test_path", "questions.jsonl"], OF_PREDICT),
        (["fit", "--ckpt_path", "last", "--trainer.max_steps", "3"], OF_RESUMED),
    ]
    if find_spec("bitsandbytes") and find_spec("accelerate"):
        commands.append(([*FIT, "--model.quantization", "4bit"], OF_FIT))
    found = printed_by(tmp_path, [words for words, _ in commands])
    for (words, kinds), streams in zip(commands, found, strict=False):
        for patterns, lines in zip(kinds, streams, strict=True):
            strange = [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in patterns)]
            missing = [pattern for pattern in patterns if not any(re.fullmatch(pattern, line) for line in lines)]
            assert (strange, missing) == ([], []), words
