"""What of a recorded configuration is taken: by each guard alone, since another may hide that one is missing."""

from __future__ import annotations

import pytest

from adapters_pl.cli.received import CODE, received

CLASS = "lightning.pytorch.callbacks.LambdaCallback"


@pytest.mark.parametrize("key", ["callbacks", "logger", "plugins", "profiler", "model_registry"])
@pytest.mark.parametrize("value", [CLASS, [CLASS], {"class_path": CLASS}, [{"class_path": CLASS}]])
def test_what_the_trainer_builds_is_not_taken_however_it_is_written(key, value):
    found = received({"trainer": {key: value, "max_epochs": 3}}, ["trainer"], "last.ckpt")
    assert found.config == {"trainer": {"max_epochs": 3}}
    assert found.left_out == [f"trainer.{key}"]


@pytest.mark.parametrize("trusted", [False, True])
def test_where_to_write_is_never_taken(trusted):
    recorded = {"trainer": {"default_root_dir": "/elsewhere", "max_epochs": 3}}
    assert received(recorded, ["trainer"], "last.ckpt", trusted=trusted).config == {"trainer": {"max_epochs": 3}}


@pytest.mark.parametrize("trusted", [False, True])
def test_the_switch_for_a_bases_own_code_is_never_taken(trusted):
    model = {"class_path": "adapters_pl.CausalLMModule", "init_args": {"base": "theirs", CODE: True}}
    found = received({"model": model}, ["model"], "last.ckpt", trusted=trusted)
    assert found.config == {"model": {**model, "init_args": {"base": "theirs"}}}
    assert found.left_out == [f"model.{CODE}" if not trusted else f"model.init_args.{CODE}"]
    assert f"--model.{CODE} true" in found.note("last.ckpt")


@pytest.mark.parametrize("kernel", ["someone/kernel", "someone/kernel@main:f", "paged|someone/kernel"])
def test_code_of_the_hub_is_not_taken_for_a_kind_of_attention(kernel):
    arguments = {"base": "theirs", "attn_implementation": kernel}
    found = received(
        {"model": {"class_path": "adapters_pl.CausalLMModule", "init_args": arguments}}, ["model"], "last.ckpt"
    )
    assert found.config["model"]["init_args"] == {"base": "theirs"}
    assert found.left_out == ["model.attn_implementation"]
    arguments["attn_implementation"] = "sdpa"
    assert received(
        {"model": {"class_path": "adapters_pl.CausalLMModule", "init_args": arguments}}, ["model"], "last.ckpt"
    ).config["model"]["init_args"] == {"base": "theirs", "attn_implementation": "sdpa"}


def test_a_list_that_would_be_parsed_for_minutes_is_not_taken():
    model = {"class_path": "adapters_pl.CausalLMModule", "init_args": {"add_tokens": ["a"] * 2001, "base": "theirs"}}
    found = received({"model": model}, ["model"], "last.ckpt")
    assert found.config["model"]["init_args"] == {"base": "theirs"}
    assert found.left_out == ["model.add_tokens"]


def test_a_switch_that_is_off_is_not_worth_a_line():
    model = {"class_path": "adapters_pl.CausalLMModule", "init_args": {"base": "ours", CODE: False}}
    assert received({"model": model}, ["model"], "last.ckpt").note("last.ckpt") is None


def test_sections_that_a_command_does_not_take_over_stay_where_they_are():
    assert received({"trainer": {"max_epochs": 3}, "ckpt_path": "/elsewhere"}, ["model"], "last.ckpt").config == {}
