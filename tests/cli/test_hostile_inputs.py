"""A part of the hostile inputs, by the program that tries all of them: ``python -m tests.helpers.hostile_inputs``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.helpers import warm

#: At least one of every kind that once ran code, never ended, or ended in a traceback.
CASES = (
    r"class/(test|fit) (trust_remote_code (bare|dotted)|adapter|data)|class/test (model|attention of the hub)",
    r"class/fit (callbacks text|logger|profiler|strategy|optimizer)",
    r"run/(latest (climbs|a pipe)|test link (predictions|last))",
    r"adapterdir/test (peft_type=\[\]|weights a pickle|weights cut at 50%|target_modules='\(\.\*\)\*.*)",
    r"config/(aliases that grow in model|merges that grow|deep mappings|python name tag|timestamp|ckpt_path number)",
    r"chat/test (loops nested|sandbox import|huge (text|power)|surrogate)",
    r"hub/online (data set|base|test base)|tokenizer/test vocabulary beyond the base",
    r"lightning/fit (callbacks empty|lr text|resume\.rows dict|random of short tensors)",
    r"state/(fit NaN|test sparse)|sharded/test part a pipe",
    r"(results|predictions)/test deep|metrics/fit (a pipe|binary)|predictions/compare a pipe",
    r"optimizer/--optimizer Foo|optimizer/--lr_scheduler StepLR|trainer/precision=weird|model/quantization=3bit",
    r"recipes/recipe a pipe|plan/of PEFTAdapter",
    r"study/(name \{x\}|file several axes that grow|about axes a list|open lock a link out|results sets of markup)",
    r"study/db (slot a list|a trigger without an end|journal a pipe)",
    r"runs/(texts (escapes|markup)|lock a link|results.json a (huge number|link without an end))",
    r"report/(texts latex|config.yaml a pipe)|compare/links out of the run",
    r"gguf/plan (a pipe|a list of 2\*\*60 numbers|a tensor huge|llama.rope.dimension_count=1000000000)",
    r"fetch/(wheel with a member that climbs|forbidden by ours)|mixture/weights \[1e18, 1\]|general-text/test a pipe",
)


def test_hostile_inputs_end_in_a_line_or_two(tmp_path):
    out = tmp_path / "ended.jsonl"
    command = [sys.executable, "-m", "tests.helpers.hostile_inputs", "--all", "--jobs", "1", "--out", str(out)]
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
