"""A part of the hostile inputs, by the program that tries all of them: ``python -m tests.helpers.hostile_inputs``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.helpers import warm

#: At least one of every kind that once ran code, never ended, or ended in a traceback.
CASES = (
    r"class/(test|fit) (trust_remote_code (bare|dotted|dict_kwargs)|adapter|adapter this|data|model)",
    r"class/fit (callbacks|callbacks text|logger|plugins|profiler|strategy|optimizer|lr_scheduler)",
    r"run/(latest (climbs|absolute|a pipe)|test link (predictions|run|last))",
    r"adapterdir/test (peft_type=\[\]|weights a pickle|weights cut at 50%|target_modules='\(\.\*\)\*.*)",
    r"config/(aliases that grow in model|merges that grow|deep mappings|python name tag|timestamp|ckpt_path number)",
    r"chat/test (loops nested|sandbox import|huge (text|power)|surrogate)",
    r"hub/online (data set|base|test base)|tokenizer/test vocabulary beyond the base",
    r"lightning/fit (callbacks empty|lr text|resume\.rows dict|random of short tensors)",
    r"state/(fit NaN|test sparse)|sharded/test part a pipe",
    r"(results|predictions)/test deep|metrics/fit (a pipe|binary)|predictions/compare a pipe",
    r"optimizer/--optimizer Foo|optimizer/--lr_scheduler StepLR|trainer/precision=weird|model/quantization=3bit",
    r"recipes/recipe a pipe|plan/of PEFTAdapter",
)


def test_hostile_inputs_end_in_a_line_or_two(tmp_path):
    out = tmp_path / "ended.jsonl"
    command = [sys.executable, "-m", "tests.helpers.hostile_inputs", "--jobs", "1", "--out", str(out)]
    command += ["--only", f"^({'|'.join(CASES)})$"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = warm.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert out.is_file(), done.stderr
    ended = [json.loads(line) for line in out.read_text().splitlines()]
    bad = {
        case["name"]: (case["verdict"], case["message"])
        for case in ended
        if case["verdict"] not in ("answered", "fine")
    }
    assert bad == {}
    assert len(ended) > 50
