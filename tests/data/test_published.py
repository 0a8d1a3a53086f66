"""Finding and downloading the published files, against a server on this machine."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_pl.data import AddSub
from adapters_pl.data import published as fetch
from adapters_pl.data.published import MissingFile, Source, blob_sha1, download, find_file, sources
from adapters_pl.inputs.cache import cache_folder, offline
from adapters_pl.inputs.errors import UserError
from tests.conftest import DATA, GOLDEN, shared

CONTENT = b'[{"instruction": "' + b"a" * 5000 + b'"}]'
LENGTH = len(CONTENT)
RELATIVE = "dataset/AddSub/test.json"


def blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(autouse=True)
def _online(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "ADAPTERS_PL_OFFLINE", "ADAPTERS_PL_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)


class Server:
    """Answers every path with ``content``; each answer ends after ``cut`` bytes, if that is given."""

    def __init__(self):
        self.content, self.cut, self.ranges, self.status = CONTENT, None, True, 200
        self.requested_ranges = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                begin = 0
                range_header = self.headers.get("Range")
                outer.requested_ranges.append(range_header)
                if outer.status != 200:
                    return self.send_error(outer.status)
                if range_header and outer.ranges:
                    begin = int(re.fullmatch(r"bytes=(\d+)-", range_header)[1])
                    if begin >= len(outer.content):
                        return self.send_error(416)
                self.send_response(206 if begin else 200)
                body = outer.content[begin:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.cut])

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/{RELATIVE}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def source(server, monkeypatch):
    """A registered file that the server has; it stands in for AddSub's."""

    def source(content=CONTENT, size=LENGTH):
        made = Source(RELATIVE, server.url, blob(content), size, 1, ("instruction",), "ODC-By-1.0", None, "nobody")
        monkeypatch.setattr(fetch, "sources", lambda: {RELATIVE: made})
        return made

    return source


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "file.json"


def leftovers(target):
    return sorted(path.name for path in target.parent.iterdir() if not path.name.endswith(".lock"))


# ---- downloading


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_file_comes_whole_and_leaves_nothing_else(source, server, target, size):
    assert download(source(size=size), target) == target
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == ["file.json"]
    assert server.requested_ranges == [None]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(source, server, target, size):
    server.cut = 2000
    download(source(size=size), target)
    assert target.read_bytes() == CONTENT
    assert server.requested_ranges == [None, "bytes=2000-", "bytes=4000-"]


def test_what_a_broken_download_left_is_gone_on_with(source, server, target):
    server.cut = 1000
    with pytest.raises(MissingFile, match=r"broke off after 3,000 bytes, which are kept: run again to go on") as caught:
        download(source(), target)
    assert "\n" not in str(caught.value)
    assert leftovers(target) == ["file.json.part"]
    server.cut, server.requested_ranges = None, []
    download(source(), target)
    assert server.requested_ranges == ["bytes=3000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_from_the_beginning(source, server, target):
    server.ranges = False
    target.parent.mkdir(parents=True)
    target.with_name("file.json.part").write_bytes(CONTENT[:3000])
    assert download(source(), target).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("length", [3000, len(CONTENT), len(CONTENT) + 5])
def test_a_leftover_of_something_else_is_thrown_away(source, target, length, size):
    target.parent.mkdir(parents=True)
    target.with_name("file.json.part").write_bytes(b"x" * length)
    assert download(source(size=size), target).read_bytes() == CONTENT
    assert leftovers(target) == ["file.json"]


def test_a_leftover_that_is_whole_is_not_asked_for_again(source, server, target):
    target.parent.mkdir(parents=True)
    target.with_name("file.json.part").write_bytes(CONTENT)
    download(source(), target)
    assert server.requested_ranges == []


def test_another_file_than_the_registered_one_is_not_kept(source, target):
    wrong = source(content=b"[]" * 3000, size=None)
    with pytest.raises(
        UserError, match=r"is not the registered file: its SHA-1 is \w{40}, not \w{40}\. Nothing"
    ) as caught:
        download(wrong, target)
    assert not isinstance(caught.value, MissingFile)
    assert "\n" not in str(caught.value)
    assert leftovers(target) == []


def test_without_a_network_one_line_says_so(server, source, target):
    wanted = source()
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(MissingFile, match=r"127\.0\.0\.1:\d+/\S+ cannot be reached \(.+\)\.$") as caught:
        download(wanted, target)
    assert "\n" not in str(caught.value)
    assert leftovers(target) == []


@pytest.mark.parametrize(("status", "times"), [(404, 1), (503, 3)])
def test_an_answer_without_a_file_is_told(server, source, target, status, times):
    server.status = status
    with pytest.raises(MissingFile, match=rf"answers {status}"):
        download(source(), target)
    assert len(server.requested_ranges) == times


def test_an_unwritable_cache_is_named_with_the_way_out(source, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(
        UserError, match=r"the cache \S+ cannot be written \(.+\): name another .* ADAPTERS_PL_CACHE"
    ) as e:
        download(source(), tmp_path / "cache" / "data" / "file.json")
    assert not isinstance(e.value, MissingFile)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "ADAPTERS_PL_OFFLINE"])
@pytest.mark.parametrize(("value", "forbidden"), [("1", True), ("TRUE", True), ("0", False), ("", False)])
def test_offline_is_honoured(server, source, target, monkeypatch, name, value, forbidden):
    monkeypatch.setenv(name, value)
    assert offline() == (name if forbidden else None)
    if forbidden:
        with pytest.raises(MissingFile, match=f"{name} forbids downloading"):
            download(source(), target)
    else:
        download(source(), target)
    assert len(server.requested_ranges) == (0 if forbidden else 1)


def test_processes_that_ask_at_once_download_once(source, server, target):
    wanted = source()
    threads = [threading.Thread(target=download, args=(wanted, target)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert server.requested_ranges == [None]


# ---- the order of places


def test_the_root_comes_before_the_cache_and_the_cache_before_the_download(source, server, tmp_path):
    source()
    first = find_file(None, RELATIVE, "AddSub")
    assert first.is_relative_to(cache_folder())
    assert find_file(None, RELATIVE, "AddSub") == first
    assert server.requested_ranges == [None]
    local = tmp_path / "root" / RELATIVE
    local.parent.mkdir(parents=True)
    local.write_text("[]")
    assert find_file(str(tmp_path / "root"), RELATIVE, "AddSub") == local
    assert find_file(str(tmp_path / "elsewhere"), RELATIVE, "AddSub") == first


def test_a_damaged_file_in_the_cache_is_never_read(source, server, monkeypatch):
    source()
    cached = find_file(None, RELATIVE, "AddSub")
    cached.write_bytes(CONTENT[:100])
    assert find_file(None, RELATIVE, "AddSub").read_bytes() == CONTENT
    cached.write_bytes(CONTENT[:100])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingFile, match=rf"AddSub: no file .*, and {cached} is not the published file\."):
        find_file(None, RELATIVE, "AddSub")


def test_a_file_named_by_its_path_comes_before_the_root(tmp_path):
    (tmp_path / RELATIVE).parent.mkdir(parents=True)
    (tmp_path / RELATIVE).write_bytes(b"[]")
    own = tmp_path / "own.json"
    own.write_bytes(CONTENT)
    assert find_file(str(tmp_path), RELATIVE, "AddSub", {RELATIVE: str(own)}) == own
    assert find_file(str(tmp_path), RELATIVE, "AddSub", {"another.json": str(own)}) == tmp_path / RELATIVE
    own.unlink()
    # Not a missing file, which skip_missing would pass over.
    with pytest.raises(UserError, match=rf"AddSub: no file {own}, which data\.files names") as caught:
        find_file(str(tmp_path), RELATIVE, "AddSub", {RELATIVE: str(own)})
    assert not isinstance(caught.value, MissingFile)


def test_the_cache_is_the_users_where_none_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("ADAPTERS_PL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "adapters_pl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "adapters_pl"


def test_a_local_file_that_is_not_the_published_one_is_read_and_told(tmp_path, monkeypatch):
    local = tmp_path / "root" / RELATIVE
    local.parent.mkdir(parents=True)
    local.write_text('[{"instruction": "Add.", "answer": "1"}]')
    messages = []
    monkeypatch.setattr(fetch, "rank_zero_info", messages.append)
    data = AddSub(root=str(tmp_path / "root"))
    assert [len(data.examples("test")) for _ in range(2)] == [1, 1]
    assert len(messages) == 1
    assert "is not the published file" in messages[0]
    assert data.checksums == {RELATIVE: blob(local.read_bytes())}


# ---- the registry

MANIFEST = GOLDEN / "dataset_manifest.json"


@shared(MANIFEST)
def test_the_registry_says_what_the_manifest_says():
    manifest = json.loads(MANIFEST.read_text())
    listed = {file["path"]: file for file in manifest["files"]}
    assert len(sources()) > 30
    for path, source in sources().items():
        file = listed[path]
        assert (source.sha1, source.size, source.rows) == (file["git_blob_sha1"], file["size"], file["rows"])
        assert (
            source.url == f"https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/{manifest['commit']}/{path}"
        )
        assert source.columns == (tuple(file["keys"][0]["keys"]) if file.get("keys") else None)


@shared(DATA)
@pytest.mark.parametrize("path", sorted(path for path in sources() if (DATA / path).is_file()))
def test_a_file_at_hand_is_the_registered_one(path):
    source = sources()[path]
    assert blob_sha1(DATA / path) == source.sha1
    rows = json.loads((DATA / path).read_text())
    assert (len(rows), tuple(rows[0])) == (source.rows, source.columns)


def test_every_source_names_its_licences_and_its_makers():
    for source in sources().values():
        assert source.shared_under == "ODC-By-1.0"
        assert len(source.citation) > 20


@settings(max_examples=50, deadline=None, derandomize=True)
@given(content=st.binary(max_size=300))
def test_a_checksum_is_gits(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("blob") / "file"
    path.write_bytes(content)
    assert blob_sha1(path) == blob(content)
