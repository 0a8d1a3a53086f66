"""Patterns over module paths have an end, and match as Python's own do."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_pl import LoRA, UserError, load_adapter, save_adapter
from adapters_pl.inputs import patterns
from adapters_pl.inputs.patterns import MOST_SECONDS, Pattern, is_simple, pattern, refuse_unbounded
from tests.conftest import tiny_model

PATH = "model.layers.0.self_attn.q_proj" * 4
ENDLESS = [r"(.*)*(.*)*(.*)*x!", r"(\w+\.?)+!", r"((\w|\w\w|\.)+)+[^\w.]", r"(a|\w|\w\w|\.)*!"]


@pytest.mark.parametrize("text", ENDLESS)
def test_a_pattern_without_an_end_is_refused(text):
    with pytest.raises(UserError, match=r"target_modules: .* takes more than 0\.5 s to match"):
        Pattern(text).matches(PATH)


def test_many_slow_patterns_have_no_more_time_than_one(monkeypatch):
    """And one process: a file may hold thousands of them."""
    begun = []
    begin = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: begun.append(begin(*a, **k)) or begun[-1])
    monkeypatch.setattr(patterns, "_matcher", patterns._Matcher())
    slow = r"(\w|\w\w|\.)*" + "[A-Z]"
    path = "model.layers.0.self_attn.q_pr"
    assert not Pattern(slow).matches(path)  # some milliseconds
    left = patterns._matcher._left
    assert left < MOST_SECONDS
    assert not Pattern(f"(?:{slow})").matches(path)
    assert patterns._matcher._left < left
    patterns._matcher._left = 1e-9
    with pytest.raises(UserError, match=r"takes more than 0\.5 s"):
        Pattern(f"(?:(?:{slow}))").matches(path)
    assert Pattern(r"(\w+\.)+q_proj").matches("model.q_proj")
    assert len(begun) <= 2  # one, and another where that was ended before it could answer


@pytest.mark.parametrize("text", [r"(?:[^.]+\.)*q_proj", r"(\w+\.)+(q|v)_proj"])
def test_a_pattern_that_repeats_a_group_and_ends_matches_as_ever(text):
    for path in ("model.layers.0.self_attn.q_proj", "q_proj", "model.q_proj.x"):
        assert Pattern(text).matches(path) == bool(re.fullmatch(text, path))


@pytest.mark.parametrize("text", [r".*\.(q|v)_proj", r"model\.layers\.[0-7]\..*", r".*_proj", "x"])
@given(path=st.from_regex(r"model\.layers\.\d{1,2}\.(self_attn|mlp)\.(q|k|v|up)_proj", fullmatch=True))
@settings(max_examples=20, derandomize=True, deadline=None)
def test_a_usual_pattern_matches_as_ever(text, path):
    assert pattern(text).matches(path) == bool(re.fullmatch(text, path))


@pytest.mark.parametrize(("text", "why"), [("(", "is no regular expression"), ("a" * 20_000, "longer than 10,000")])
def test_what_is_no_pattern_is_named(text, why):
    with pytest.raises(UserError, match=f"exclude: .*{why}"):
        Pattern(text, "exclude")


@pytest.mark.parametrize("text", ["(a+)+b", "(a|b)*c", ".*.*.*.*x", "a" * 20_000, "a?" * 30, r"(.*)\1"])
def test_what_another_library_would_match_for_ever_is_refused(text):
    with pytest.raises(UserError, match="rank_pattern"):
        refuse_unbounded(text, "rank_pattern")


@pytest.mark.parametrize("text", ["q_proj", r".*\.q_proj", r"^layers\.\d+\.mlp\.(up|down)_proj$", "a[*+]{2}"])
def test_what_ends_is_left_to_it(text):
    refuse_unbounded(text, "rank_pattern")
    assert is_simple(text)


@pytest.mark.parametrize("setting", ["target_modules", "rank_pattern", "exclude_modules", "layers_pattern"])
def test_an_adapter_directory_with_an_endless_pattern_changes_nothing(tmp_path, setting):
    model = tiny_model("llama")
    adapter = LoRA(rank=2)
    adapter.attach_to(model)
    save_adapter(model, adapter, tmp_path)
    adapter.detach_from(model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    endless = r"(.*)*(.*)*(.*)*x!"
    config |= {setting: {endless: 2} if setting == "rank_pattern" else endless}
    config |= {"layers_to_transform": [0]} if setting == "layers_pattern" else {}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"takes more than 0\.5 s|repeats too much"):
        load_adapter(model, tmp_path)
    assert not [name for name, _ in model.named_modules() if name.endswith("adapters")]
