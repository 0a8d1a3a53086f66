"""Limits of what is read, and the one error for what is beyond."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adapters_pl import UserError
from adapters_pl.inputs import untrusted
from adapters_pl.inputs.untrusted import MOST_LEVELS, has_shape, is_plain, load_config_file, read_json, reading


def nested(levels):
    tree = 1
    for _ in range(levels):
        tree = [tree]
    return tree


def test_plain_data_has_a_depth_and_a_size():
    assert is_plain({"a": [1, 2.5, None, True, "text", {"b": nested(5)}]})
    assert is_plain(nested(MOST_LEVELS - 1))
    assert not is_plain(nested(MOST_LEVELS))
    assert not is_plain({1: "a key that is no text"})
    assert not is_plain({"a": object()})
    shared = [0] * 1000
    for _ in range(4):
        shared = [shared] * 50  # small in memory, 6 thousand million values when it is written out
    assert not is_plain(shared)


def test_a_list_in_itself_is_no_data():
    tree = []
    tree.append(tree)
    assert not is_plain(tree)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "may be cut"),
        (b"\xff\xfe", "may be cut"),
        (b"[" * 100_000, "nested deeper than 16"),
        (b"[1]", "should hold an object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "may be cut.*4300 digits"),
        (json.dumps({"a": nested(20)}).encode(), "deeper than 16 levels"),
    ],
)
def test_a_settings_file_that_is_none_is_named(tmp_path, content, says):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(UserError, match=f"settings.json: .*{says}"):
        read_json(tmp_path / "settings.json")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "settings.json")
    with pytest.raises(UserError, match="is no file"):
        read_json(tmp_path / "settings.json")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system has no /proc")
def test_what_a_file_says_of_its_size_is_not_believed(tmp_path, monkeypatch):
    (tmp_path / "settings.json").symlink_to("/proc/self/maps")
    monkeypatch.setattr(untrusted, "MOST_BYTES", 1000)
    monkeypatch.setattr(untrusted, "MOST_CONFIG_BYTES", 1000)
    with pytest.raises(UserError, match="holds more than"):
        read_json(tmp_path / "settings.json")
    with pytest.raises(UserError, match="holds more than"):
        load_config_file(tmp_path / "settings.json")


def test_what_goes_wrong_in_reading_is_the_inputs_fault():
    for error, says in (
        (KeyError("r"), "'r' is missing"),
        (TypeError("no"), "TypeError: no"),
        (RecursionError(), "deep"),
    ):
        with pytest.raises(UserError, match=f"a.json: .*{says}"), reading("a.json"):
            raise error
    with pytest.raises(UserError, match=r"^a\.json: rank is 0$"), reading("a.json"):
        raise UserError("rank is 0")


def test_shapes():
    shape = {"n": int, "names": [str], "by": {str: (float, int)}, "maybe": (str, None)}
    good = {"n": 1, "names": ["a"], "by": {"x": 1.5, "y": 2}, "maybe": None, "more": object()}
    assert has_shape(good, shape)
    for key, bad in (("n", True), ("n", "1"), ("names", "a"), ("names", [1]), ("by", {"x": "1"}), ("maybe", 3)):
        assert not has_shape({**good, key: bad}, shape)
    assert not has_shape({"n": 1}, shape)


GROWING = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30))])
MERGES = "\n".join(
    ["a0: &a0 {k0: 1, l0: 2}"] + [f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n  k{i}: 1" for i in range(1, 30)]
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GROWING, "aliases stand for more than"),
        (MERGES, "more than 10,000 keys"),
        ("a: &a [*a]", "nested deeper than 16"),
        ("a: " + "[" * 5000, "nested deeper"),
        ("a: " + "[" * 20 + "]" * 20, "nested deeper than 16"),
        ("a: 2001-13-99", "mend it"),
        ("a: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
        ("? [1]\n: 2", "a key has to be a text"),
        ("a: " + "x" * 2**20, "more than 64 KiB"),
    ],
    ids=["aliases", "merges", "in itself", "open", "deep", "date", "tag", "key", "large"],
)
def test_a_configuration_that_grows_or_runs_is_refused(tmp_path, text, says):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=f"a.yaml.*{says}"):
        load_config_file(tmp_path / "a.yaml")


def test_aliases_that_do_not_grow_are_fine(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {lr: 1}\nb: *a\nc:\n  <<: *a\n  rank: 2\n")
    assert load_config_file(tmp_path / "a.yaml") == {"a": {"lr": 1}, "b": {"lr": 1}, "c": {"lr": 1, "rank": 2}}
