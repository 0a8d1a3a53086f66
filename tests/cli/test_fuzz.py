"""Whatever is read: it is taken, or one UserError says what is wrong; nothing hangs, nothing is written elsewhere.

Here are a few fixed examples of every property. ``make fuzz`` draws ten thousand others, from a seed that it prints.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from adapters_pl import IA3, InstructionJSON, LoRA, PEFTAdapter, PrefixTuning, PromptTuning, PTuning
from adapters_pl.adapters import adapter_layers
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.configuration import inherited_config
from adapters_pl.cli.main import main
from adapters_pl.cli.received import SECTIONS, received
from adapters_pl.data.files import FIELDS, read_rows
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.untrusted import is_plain, load_config_file
from adapters_pl.models.base import load_base, load_config, load_tokenizer, meta_model
from adapters_pl.training.adapter_files import base_of, load_adapter, save_adapter
from adapters_pl.training.checkpoint import build_adapter, read_checkpoint
from tests.conftest import tiny_model, tiny_tokenizer
from tests.helpers import hostile_inputs
from tests.helpers.hostile_cases.common import RESUME, fit
from tests.helpers.mutations import (
    Change,
    Spot,
    changed,
    changes,
    keys,
    nested,
    plain,
    spoilt,
    spots,
    tensor_changes,
    texts,
    with_header,
)

#: How many examples all properties have together; a few fixed ones of each if it is not set.
LONG = int(os.environ.get("FUZZ_EXAMPLES", "0"))
#: Seconds that an example may take.
HANGS_AFTER = 5.0
#: Bytes that this process may take beyond what it has when the tests begin.
MEMORY = 8 << 30
RECIPES = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
LLAMA = tiny_model("llama")
IDS = torch.tensor([[1, 5, 9, 30, 31]])


def fuzz(short, share, shrink=True):
    """The settings of a property: so many examples here, and ``share`` of a thousand in the long form."""
    left_out = {Phase.explain} if shrink else {Phase.explain, Phase.shrink}
    return settings(
        phases=set(Phase) - left_out,
        max_examples=max(1, LONG * share // 1000) if LONG else short,
        derandomize=not LONG,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


class Late(BaseException):
    """Not an Exception, which somebody would take for the input's fault."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a base and a directory of every method; no example changes any of it."""
    place = tmp_path_factory.mktemp("fuzz")
    kept = os.getcwd(), tempfile.tempdir, resource.getrlimit(resource.RLIMIT_AS)
    for name in ("prepared", "home", "tmp", "here", "log"):
        (place / name).mkdir()
    tempfile.tempdir = str(place / "tmp")
    child = hostile_inputs.forked(lambda: _train(place / "prepared"), place / "log")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, (place / "log/stdout").read_text() + (place / "log/stderr").read_text()
    for name, adapter in METHODS.items():
        model, made = copy.deepcopy(LLAMA), adapter()
        made.attach_to(model, seed=1)
        save_adapter(model, made, place / "prepared" / name, "base")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, kept[2][1]))
    yield place
    resource.setrlimit(resource.RLIMIT_AS, kept[2])
    os.chdir(kept[0])
    tempfile.tempdir = kept[1]


EMBEDDING = "base_model.model.model.embed_tokens.weight"
MATRIX = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
METHODS = {
    "lora": lambda: LoRA(rank=2, alpha=4, rank_pattern={"q_proj": 1}),
    "dora": lambda: LoRA(rank=2, alpha=4, dora=True, modules_to_save=["embed_tokens"]),
    "prefix": lambda: PrefixTuning(2),
    "prompt": lambda: PromptTuning(2),
    "ptuning": lambda: PTuning(2, encoder_hidden=4),
    "ia3": lambda: IA3(),
    "peft": lambda: PEFTAdapter({"class_path": "peft.VeraConfig", "init_args": {"r": 2, "target_modules": ["q_proj"]}}),
}


def _train(folder):
    os.chdir(folder)
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}.", "answer": str(n)} for n in range(40)]
    Path("sums.json").write_text(json.dumps(rows))
    longer = ["--trainer.max_steps", "2", "--data.val_size", "2", "--trainer.log_every_n_steps", "1"]
    return hostile_inputs.run_main(main, fit("LoRA", "--adapter.rank", "2", *longer))


def _listing(place):
    """What lies beside the example's own folder."""
    found = {}
    for top, folders, files in os.walk(place):
        if top == str(place):
            folders.remove("here")
        found |= {os.path.join(top, name): None for name in folders}
        for name in files:
            about = os.lstat(os.path.join(top, name))
            found[os.path.join(top, name)] = about.st_size, about.st_mtime_ns
    return found


@pytest.fixture
def reading(place):
    """What an example is read within: an empty folder to stand in, with an end."""

    @contextlib.contextmanager
    def reading(known=UserError):
        shutil.rmtree(place / "here")
        (place / "here").mkdir()
        os.chdir(place / "here")
        before, path, began = _listing(place), [*sys.path], time.monotonic()

        def late(*_):
            raise Late

        kept = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER)
        try:
            yield place / "here"
        except known:
            pass
        except Late:
            raise AssertionError(f"took longer than {HANGS_AFTER} s") from None
        except BaseException as error:
            if isinstance(error, Exception | KeyboardInterrupt):
                raise
            raise AssertionError(f"{type(error).__name__} is no Exception: {error}") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, kept)
            sys.path[:] = path
        assert time.monotonic() - began < HANGS_AFTER
        assert _listing(place) == before
        assert torch.get_default_dtype() is torch.float32
        assert torch.empty(0).device.type == "cpu"

    return reading


# ---- configurations

trees = st.builds(changed, st.sampled_from(RECIPES).map(lambda path: yaml.safe_load(path.read_text())), changes())
bombs = st.builds(
    lambda levels, width: (
        "l0: &l0 [x]\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]\n" for n in range(1, levels))
    ),
    st.integers(1, 30),
    st.integers(1, 30),
)


def as_yaml(tree):
    """The text; what stands in several places is an alias."""
    return yaml.safe_dump(tree, allow_unicode=False).encode()


configurations = st.one_of(
    trees.map(as_yaml),
    st.one_of(plain, st.dictionaries(keys, plain)).map(as_yaml),
    st.builds(spoilt, st.sampled_from(RECIPES).map(Path.read_bytes), spots),
    st.one_of(bombs, texts).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=40),
)


@fuzz(60, 300)
@given(configurations)
@example(b"[" * 200 + b"x, " * 40_000)
@example(b"".join(b"k%d: v\n" % number for number in range(90_000)))
def test_a_configuration_file(reading, content):
    with reading() as here:
        (here / "some.yaml").write_bytes(content)
        assert isinstance(load_config_file(here / "some.yaml"), dict)


@fuzz(12, 30, shrink=False)
@given(st.one_of(trees.map(as_yaml), configurations))
def test_a_configuration_on_the_command_line(reading, content):
    out = io.StringIO()
    with reading(SystemExit) as here, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        (here / "some.yaml").write_bytes(content)
        code = main(["fit", "--config", "some.yaml", "--print_config"])
        assert code in (0, 1), f"{code}: {out.getvalue()[-2000:]}"
        assert "Traceback" not in out.getvalue()


# ---- checkpoints


class Stored(dict):
    """What the run's checkpoint holds; too long to be printed with every example."""

    def __repr__(self):
        return "stored"


@pytest.fixture(scope="module")
def stored(place):
    return Stored(torch.load(place / "prepared/runs/lora-1/checkpoints/last.ckpt", weights_only=True))


def unchanged_after(path):
    """Load what lies at ``path`` into a model, and see that it then works or is what it was."""
    model = copy.deepcopy(LLAMA)
    try:
        load_adapter(model, path)
    except UserError:
        assert not adapter_layers(model)
        assert [name for name, _ in model.named_modules()] == [name for name, _ in LLAMA.named_modules()]
        assert [type(module) for module in model.modules()] == [type(module) for module in LLAMA.modules()]
        assert not hasattr(model, "peft_config")
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, LLAMA(IDS).logits)
        raise
    with torch.no_grad():
        model(IDS)


def _look_at(path):
    """Everything that reads a checkpoint, each for itself."""
    with_adapter = CommandLine.read("test", ["--adapter", "LoRA"])
    steps = [
        lambda: base_of(path),
        lambda: [build_adapter(described, path) for described in read_checkpoint(path)[0]["adapters"]],
        lambda: yaml.safe_dump(inherited_config(path, CommandLine("fit"))[0]),
        lambda: yaml.safe_dump(inherited_config(path, with_adapter, trusted=True)[0]),
        lambda: unchanged_after(path),
    ]
    for step in steps:
        with contextlib.suppress(UserError):
            step()


@fuzz(40, 200)
@given(tensor_changes, st.sampled_from(["adapters_pl", "adapters_pl", "adapters_pl", "state_dict", ""]))
def test_what_a_checkpoint_holds(reading, stored, todo, below):
    checkpoint = {key: stored[key] for key in ("adapters_pl", "state_dict")}
    if below:
        todo = [Change((below, *change.where), change.how, change.value) for change in todo]
    with reading() as here:
        torch.save(changed(checkpoint, todo), here / "some.ckpt")
        _look_at(here / "some.ckpt")


@fuzz(40, 50)
@given(tensor_changes, st.booleans())
@example([Change((), "replace", None)], False)
@example([Change(("seed_everything",), "replace", torch.ones(2))], True)
@example([Change(("trainer", "max_time"), "replace", nested(60))], True)
def test_a_recorded_configuration(reading, stored, todo, trusted):
    with reading():
        config = changed(stored["adapters_pl"]["config"], todo)
        found = received(config, [*SECTIONS, "trainer", "seed_everything"], "some.ckpt", trusted=trusted)
        assert is_plain(yaml.safe_load(yaml.safe_dump(found.config)))  # as a command takes it over


@fuzz(20, 80)
@given(spots)
def test_the_bytes_of_a_checkpoint(reading, stored, todo):
    file = io.BytesIO()
    torch.save({key: stored[key] for key in ("adapters_pl", "state_dict")}, file)
    with reading() as here:
        (here / "some.ckpt").write_bytes(spoilt(file.getvalue(), todo))
        _look_at(here / "some.ckpt")


def _resumed(place, stored, todo):
    """How training that goes on from a changed checkpoint ends: the verdict, the reason, and what it said."""
    number = len(list((place / "log").iterdir()))
    folder = place / "log" / f"case-{number}"
    for part in hostile_inputs.PARTS[1:]:
        (folder / part).mkdir(parents=True)
    shutil.copytree(place / "prepared", folder / "here")

    def spoil():
        torch.save(changed(stored, todo), "runs/lora-1/checkpoints/last.ckpt")

    case = hostile_inputs.Case("fuzz", RESUME, spoil, expect="any", within=HANGS_AFTER)
    child = hostile_inputs.forked(lambda: hostile_inputs.attempt(case, folder), folder)
    began, killed, done = time.monotonic(), False, 0
    while not done:
        done, status = os.waitpid(child, os.WNOHANG)
        if not done and not killed and time.monotonic() - began > hostile_inputs.KILLED_AFTER:
            os.killpg(child, signal.SIGKILL)
            killed = True
        time.sleep(0.01)
    code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - began
    result = hostile_inputs.judge(case, folder, code, seconds, killed)
    log = (folder / "stderr").read_text("utf-8", "replace")
    log += "".join(file.read_text() for file in (folder / "here").rglob("crash.log"))
    shutil.rmtree(folder)
    return result["verdict"], result["reason"], log[-2500:]


@fuzz(4, 20, shrink=False)
@given(tensor_changes)
@example([Change(("global_step",), "replace", None)])
@example([Change(("optimizer_states",), "replace", None)])
@example([Change(("pytorch-lightning_version",), "replace", None)])
@example([Change(("loops", "fit_loop"), "delete")])
@example([Change(("optimizer_states", 0, "state", 0, "exp_avg"), "flat")])
def test_training_goes_on_from_a_checkpoint(place, stored, todo):
    verdict, reason, log = _resumed(place, stored, todo)
    assert verdict in ("answered", "fine", "unclear"), (verdict, reason, log)


# ---- adapter directories


@fuzz(70, 130)
@given(st.sampled_from(list(METHODS)), changes())
@example("lora", [Change(("peft_type",), "replace", [])])
@example("prompt", [Change(("num_virtual_tokens",), "replace", 10**12)])
@example("prefix", [Change(("num_virtual_tokens",), "replace", 2**63 - 1)])
@example("lora", [Change(("r",), "replace", 10**12)])
def test_the_settings_of_an_adapter_directory(reading, place, method, todo):
    with reading() as here:
        shutil.copytree(place / "prepared" / method, here / "adapter")
        file = here / "adapter/adapter_config.json"
        file.write_text(json.dumps(changed(json.loads(file.read_text()), todo)))
        unchanged_after(here / "adapter")


def _spoil_weights(file, todo):
    """Change a safetensors file: its bytes, its header, or the tensors in it."""
    kind, what = todo
    if kind == "bytes":
        file.write_bytes(spoilt(file.read_bytes(), what))
    elif kind == "header":
        file.write_bytes(with_header(file.read_bytes(), what))
    else:
        tensors = changed(load_file(file), what)
        assume(isinstance(tensors, dict) and tensors)
        try:
            save_file({key: value.clone() for key, value in tensors.items() if isinstance(value, torch.Tensor)}, file)
        except UnicodeEncodeError:
            assume(False)


spoilt_weights = st.one_of(
    st.tuples(st.just("bytes"), spots),
    st.tuples(st.just("header"), changes()),
    st.tuples(st.just("tensors"), tensor_changes),
    st.tuples(st.just("tensors"), tensor_changes),
)


@fuzz(50, 90)
@given(st.sampled_from(list(METHODS)), spoilt_weights)
@example("dora", ("tensors", [Change((EMBEDDING,), "scalar")]))
@example("dora", ("tensors", [Change((EMBEDDING,), "grow"), Change((MATRIX,), "flat")]))
def test_the_weights_of_an_adapter_directory(reading, place, method, todo):
    with reading() as here:
        shutil.copytree(place / "prepared" / method, here / "adapter")
        _spoil_weights(here / "adapter/adapter_model.safetensors", todo)
        unchanged_after(here / "adapter")


# ---- rows

_fields = st.one_of(st.sampled_from([*FIELDS, *FIELDS, "instruction", "extra"]), keys)
_extra = dict.fromkeys(["answer", "output", "id", "x"], plain)
_rows = st.lists(
    st.one_of(
        st.dictionaries(_fields, st.one_of(texts, plain), max_size=5),
        st.builds(lambda row, text: {**row, "instruction": text}, st.dictionaries(_fields, plain), texts),
        st.fixed_dictionaries({"instruction": st.just("Say 3.")}, optional=_extra),
        plain,
    ),
    max_size=5,
)


def _csv(rows):
    file = io.StringIO()
    columns = [*dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)]
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([[row.get(key) for key in columns] for row in rows if isinstance(row, dict)])
    return _utf8(file.getvalue())


def _columns(rows):
    try:
        return pa.Table.from_pylist([row for row in rows if isinstance(row, dict)])
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
        return None


#: Columns of every kind, with values at the ends of their ranges where text cannot always say them.
_COLUMNS = {
    "text": pa.array(["Say 3.", None, "\0"]),
    "large": pa.array(["Say 3.", "x", None], pa.large_string()),
    "words": pa.array(["Say 3.", "x", "x"]).dictionary_encode(),
    "bytes": pa.array([b"\xff\xfe", b"", None]),
    "tiny": pa.array([1, None, -128], pa.int8()),
    "half": pa.array([1.5, float("nan"), None], pa.float32()).cast(pa.float16()),
    "truth": pa.array([True, None, False]),
    "days": pa.array([0, 2**31 - 1, -(2**31)], pa.int32()).cast(pa.date32()),
    "moments": pa.array([0, 2**62, -(2**62)]).cast(pa.timestamp("us")),
    "zones": pa.array([0, 1, None]).cast(pa.timestamp("ns", "Mars/Olympus")),
    "spans": pa.array([0, 2**62, None]).cast(pa.duration("s")),
    "times": pa.array([0, 1, None]).cast(pa.time64("ns")),
    "decimals": pa.array([None, None, None], pa.decimal128(9, 2)),
    "lists": pa.array([[1], [], None]),
    "structs": pa.array([{"a": "x"}, {"a": None}, None]),
    "maps": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "nothing": pa.nulls(3),
}
_tables = st.one_of(
    _rows.map(_columns),
    st.dictionaries(_fields.filter(lambda name: name.isascii()), st.sampled_from(list(_COLUMNS)), min_size=1).map(
        lambda chosen: pa.table({name: _COLUMNS[kind] for name, kind in {"instruction": "text", **chosen}.items()})
    ),
).filter(lambda table: table is not None)


def _parquet(table):
    file = io.BytesIO()
    try:
        parquet.write_table(table, file)
    except pa.ArrowException:  # what the format cannot hold
        return b""
    return file.getvalue()


def _utf8(text):
    return text.encode("utf-8", "surrogatepass")


row_files = st.one_of(
    st.tuples(st.just("json"), _rows.map(json.dumps).map(_utf8)),
    st.tuples(st.just("json"), _rows.map(lambda rows: _utf8(json.dumps(rows, ensure_ascii=False)))),
    st.tuples(st.just("jsonl"), _rows.map(lambda rows: _utf8("\n".join(map(json.dumps, rows))))),
    st.tuples(st.just("csv"), _rows.map(_csv)),
    st.tuples(st.just("parquet"), _tables.map(_parquet)),
    st.tuples(
        st.sampled_from(["json", "jsonl", "csv", "parquet", "txt"]), st.one_of(texts.map(_utf8), st.binary(max_size=60))
    ),
)


def _read(file):
    """Everything that reads rows, each for itself."""
    with contextlib.suppress(UserError):
        read_rows(file)
    for kind in ("auto", "choice"):
        with contextlib.suppress(UserError):
            InstructionJSON(path=str(file), answer_kind=kind).examples("train")
    with contextlib.suppress(UserError):
        InstructionJSON(test_path=str(file), columns={"instruction": "answer"}).examples("test")


@fuzz(60, 120)
@given(row_files)
@example(("parquet", _parquet(pa.table({"instruction": _COLUMNS["text"], "id": _COLUMNS["days"]}))))
@example(("parquet", _parquet(pa.table({"instruction": _COLUMNS["text"], "x": _COLUMNS["zones"]}))))
def test_rows(reading, content):
    with reading() as here:
        file = here / f"rows.{content[0]}"
        file.write_bytes(content[1])
        _read(file)


@fuzz(30, 60)
@given(row_files, spots)
@example(("csv", b"answer,instruction\r\n,Say 3.\r\n"), [Spot(0, "flip", b"\0")])
def test_the_bytes_of_rows(reading, content, todo):
    with reading() as here:
        file = here / f"rows.{content[0]}"
        file.write_bytes(spoilt(content[1], todo))
        _read(file)


# ---- bases

_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]


def _open(base):
    """Everything that reads a base, each for itself."""
    for step in (
        lambda: meta_model(load_config(base)),
        lambda: load_tokenizer(base)("Say 3.", return_tensors="pt"),
        lambda: load_base(base)(IDS),
    ):
        with contextlib.suppress(UserError), torch.no_grad():
            step()


@fuzz(20, 60)
@given(st.sampled_from([*_FILES, "config.json"]), changes())
@example("tokenizer_config.json", [Change(("model_max_length",), "replace", {})])
@example("tokenizer.json", [Change(("model", "continuing_subword_prefix"), "replace", "-1")])
def test_the_settings_of_a_base(reading, place, name, todo):
    with reading() as here:
        shutil.copytree(place / "prepared/base", here / "base")
        file = here / "base" / name
        file.write_text(json.dumps(changed(json.loads(file.read_text()), todo)))
        _open("base" if name == "config.json" else str(here / "base"))


@fuzz(8, 20)
@given(spoilt_weights)
def test_the_weights_of_a_base(reading, place, todo):
    with reading() as here:
        shutil.copytree(place / "prepared/base", here / "base")
        _spoil_weights(here / "base/model.safetensors", todo)
        _open("./base")


@fuzz(10, 20)
@given(st.sampled_from(_FILES), spots)
def test_the_bytes_of_a_base(reading, place, name, todo):
    with reading() as here:
        shutil.copytree(place / "prepared/base", here / "base")
        file = here / "base" / name
        file.write_bytes(spoilt(file.read_bytes(), todo))
        _open("./base")
