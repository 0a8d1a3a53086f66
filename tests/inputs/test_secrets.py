"""No secret is left in a run's folder or printed, wherever a user has put one; and no plain setting is masked."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import peft
import pytest
import torch
import yaml
from lightning.pytorch import callbacks, loggers, profilers, strategies

import adapters_pl
from adapters_pl.adapters import LoRA
from adapters_pl.cli import main as cli
from adapters_pl.cli.main import main
from adapters_pl.evaluation.journal import PartialAnswers
from adapters_pl.inputs import masking
from adapters_pl.inputs.masking import begin, masked, masked_parts, masked_url, masked_values, masked_words, remember
from adapters_pl.inputs.untrusted import read_json
from adapters_pl.runs import run as runs
from adapters_pl.training.adapter_files import save_adapter
from tests.conftest import tiny_model

ROOT = Path(__file__).resolve().parents[2]
#: Longer than what is cut off a message, so that a part of it would be left.
LONG = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkphbmUifQ" * 8 + ".SflKxwRJSMeKKF2QT4fwpMeJf36P"

#: What is planted, by where.
SECRETS = {
    "HF_TOKEN": "hf_" + "AbCdEfGhIj0123456789" * 2,
    "HUGGING_FACE_HUB_TOKEN": "hub-token-without-a-shape",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalr/UtnFEMI+K7MDENG=bPxRfi",
    "proxy": "proxy-pass%21word",
    "index": "index-password",
    "path": "path-password",
    "query": "query-token",
    "argument": "swordfish argument's",
    "json": "swordfish-in-json",
    "file": "swordfish-in-a-file",
    "pin": "48151623",
    "adapter": "swordfish-of-the-adapter",
    "model": "swordfish-of-the-module",
    "remote": "remote-password",
    "long": LONG,
    "base": "base-password",
    "typo": "swordfish-mistyped",
}
ENVIRONMENT = {
    **{
        name: SECRETS[name] for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
    },
    "HTTPS_PROXY": f"http://me:{SECRETS['proxy']}@proxy.example:3128",
    "PIP_INDEX_URL": f"https://me:{SECRETS['index']}@pypi.example/simple",
}

OWN = """
import os
import adapters_pl


class Rows(adapters_pl.InstructionJSON):
    def __init__(self, api_key: str, settings: dict | None = None, credentials: dict | None = None,
                 crash: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.save_hyperparameters(ignore=["kwargs"])
        self.api_key, self.settings_, self.credentials, self.crash = api_key, settings, credentials, crash

    def _read(self, path, split):
        if self.crash:
            raise RuntimeError(" ".join([self.crash, path, self.api_key, repr(self.settings_), str(self.credentials),
                                         *map(os.environ.get, os.environ["PLANTED"].split())]))
        print("reading", "rows.json")
        return super()._read("rows.json", split)


class Adapter(adapters_pl.LoRA):
    def __init__(self, auth_token: str = "", **kwargs):
        super().__init__(**kwargs)
        self.auth_token = auth_token

    def init_args(self):
        return {**super().init_args(), "auth_token": self.auth_token}

    def to_peft(self, model):
        config, tensors = super().to_peft(model)
        return {**config, "auth_token": self.auth_token}, tensors


class Module(adapters_pl.CausalLMModule):
    def __init__(self, client_secret: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.client_secret = client_secret
        self.save_hyperparameters(ignore=["kwargs"])
"""

DRIVER = """
import json, sys
from adapters_pl.cli.main import main
codes = []
for words in json.load(open("commands.json")):
    sys.argv = ["adapters-pl", *words]
    codes.append(main(words))
json.dump(codes, open("codes.json", "w"))
"""


def content(folder: Path) -> dict[str, bytes]:
    """Every byte below ``folder`` by its file, those that are packed in a checkpoint too, and the files' names."""
    found = {"the names": "\n".join(map(str, folder.rglob("*"))).encode()}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                found |= {f"{path.name}/{name}": packed.read(name) for name in packed.namelist()}
    return found


def forms(secret: str) -> set[bytes]:
    """How a secret may be written; of a long one also what is left when it is cut."""
    from urllib.parse import quote, unquote

    written = {secret, quote(secret, safe=""), unquote(secret), json.dumps(secret)[1:-1], shlex.quote(secret)}
    return {form.encode() for form in (*written, secret[:60])}


def leaks(found: dict[str, bytes]) -> list[str]:
    return [
        f"{place} in {file}"
        for place, secret in SECRETS.items()
        for file, held in found.items()
        if any(form in held for form in forms(secret))
    ]


@pytest.fixture(scope="module")
def planted(tmp_path_factory, make_base):
    """A folder in which commands ran that were given secrets in every place, and what they printed."""
    here = tmp_path_factory.mktemp("planted")
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}.", "answer": str(n)} for n in range(12)]
    (here / "rows.json").write_text(json.dumps(rows))
    (here / "own_secrets.py").write_text(OWN)
    subprocess.run(["git", "init", "-q", here], check=True)
    remote = f"https://me:{SECRETS['remote']}@git.example/x.git"
    subprocess.run(["git", "-C", here, "remote", "add", "origin", remote], check=True)
    config = {
        "data": {
            "class_path": "own_secrets.Rows",
            "init_args": {"credentials": {"user": "me", "password": SECRETS["file"], "pin": int(SECRETS["pin"])}},
        },
        "trainer": {
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs/planted-1"}}
        },
    }
    (here / "planted.yaml").write_text(yaml.safe_dump(config))
    settings = {"token": SECRETS["json"], "jwt": LONG}
    given = [
        *("--data.path", f"https://me:{SECRETS['path']}@host.example/rows.json?token={SECRETS['query']}"),
        *("--data.api_key", SECRETS["argument"], "--data.settings", json.dumps(settings)),
        *("--data.val_size", "2", "--data.max_new_tokens", "2"),
    ]
    quick = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    model = ["--model", "own_secrets.Module", f"--model.client_secret={SECRETS['model']}"]
    model += ["--model.base", str(make_base())]
    trained = ["--adapter", "own_secrets.Adapter", "--adapter.auth_token", SECRETS["adapter"]]
    begin_with = ["--config", "planted.yaml", *given, *model, *trained, *quick]
    unknown = f"https://me:{SECRETS['base']}@hub.example/base"
    commands = [
        ["fit", *begin_with, "--trainer.max_epochs", "1"],
        ["fit", *begin_with, "--trainer.max_epochs", "2", "--ckpt_path", "runs/planted-1"],
        ["validate", *begin_with, "--ckpt_path", "last"],
        ["test", *begin_with, "--ckpt_path", "last"],
        ["predict", *begin_with, "--ckpt_path", "last"],
        ["export", "--ckpt_path", "last", "--out", "out", "--trust_checkpoint"],
        ["test", "--ckpt_path", "last", "--trust_checkpoint", *quick],  # without the secrets
        ["fit", *begin_with, "--data.crash", "x" * 260],  # where the message is cut
        ["fit", *begin_with, "--data.crash", "no"],
        ["test", "--model.base", unknown, "--data", "InstructionJSON", "--data.path", "rows.json", *quick],
        ["plan", "--model.base", unknown, *trained],
        ["fit", *begin_with, "--data.batch_size", LONG],
        ["fit", *begin_with, f"--data.api_kye={SECRETS['typo']}"],
        ["fit", *begin_with, "--data.api_key", SECRETS["argument"], "--trainer.max_steps", SECRETS["HF_TOKEN"]],
    ]
    (here / "commands.json").write_text(json.dumps(commands))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        **ENVIRONMENT,
        "PLANTED": " ".join(ENVIRONMENT),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run([sys.executable, "-c", DRIVER], cwd=here, env=environment, capture_output=True)
    codes = json.loads((here / "codes.json").read_text())
    return SimpleNamespace(folder=here, codes=codes, out=done.stdout, err=done.stderr)


# ---- nothing is left


def test_the_commands_did_what_they_should(planted):
    assert planted.codes == [0, 0, 0, 0, 0, 0, 1, 2, 2, 1, 1, 1, 1, 1], planted.err.decode()
    files = {str(path.relative_to(planted.folder)) for path in (planted.folder / "runs").rglob("*")}
    names = ("config.yaml", "environment.json", "results.json", "checkpoints/last.ckpt", "adapter/adapter_config.json")
    assert {f"runs/planted-1/{name}" for name in names} <= files
    assert any(name.endswith("hparams.yaml") for name in files)
    assert any(name.endswith("crash.log") for name in files)


def test_no_secret_is_in_a_runs_folder(planted):
    assert leaks(content(planted.folder / "runs")) == []


def test_no_secret_is_in_what_is_exported(planted):
    assert leaks(content(planted.folder / "out")) == []


def test_no_secret_is_printed(planted):
    assert leaks({"stdout": planted.out, "stderr": planted.err}) == []


def test_of_the_environment_a_run_records_its_slurm_job_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["adapters-pl", "fit"])
    before = runs.environment()
    for n in range(50):
        monkeypatch.setenv(f"PLANTED_{n}", f"canary {n}")
    for name, value in {**ENVIRONMENT, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert runs.environment() == {**before, "slurm_job": "7_3"}
    assert runs.RECORDED_VARIABLES == ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")


def test_a_traceback_that_is_asked_for_shows_none(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.setattr(cli, "main", lambda: 0)
    monkeypatch.setattr(cli.terminal, "prepare", lambda: None)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(SystemExit):
        cli.console()
    try:
        raise RuntimeError(f"refused: {SECRETS['HF_TOKEN']}")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert "RuntimeError: refused: ***" in said
    assert SECRETS["HF_TOKEN"] not in said


def test_an_adapters_directory_names_no_login(tmp_path):
    model, adapter = tiny_model("llama"), LoRA()
    adapter.attach_to(model, seed=0)
    save_adapter(model, adapter, tmp_path, "https://me:password@host.example/base")
    assert read_json(tmp_path / "adapter_config.json")["base_model_name_or_path"] == "https://***@host.example/base"


def test_the_answers_of_a_test_under_way_stand_under_no_secret(tmp_path):
    partial = PartialAnswers(tmp_path / "x.jsonl", {"adapters": [{"auth_token": "swordfish"}]})
    partial.begin()
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"settings": {"adapters": [{"auth_token": "***"}]}}
    partial.append([{"row": 3, "prompt_hash": "a", "output": "", "correct": True}])
    again = PartialAnswers(partial.path, {"adapters": [{"auth_token": "swordfish"}]})
    again.begin()
    assert list(again.read({3: "a"})) == [3]


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.json", {"https://a:b1@c/d": [{"api_key": "a1"}]}), ("x.log", "https://a:b1@c/d and api_key=a1"),
     ("config.yaml", "x: https://a:b1@c/d\napi_key: a1\n")],
)  # fmt: skip
def test_whatever_is_written_into_a_run_is_masked(tmp_path, name, content):
    text = runs.Run(tmp_path).write(name, content).read_text()
    assert "a1" not in text
    assert "b1" not in text
    assert text.count("***") == 2


def test_rows_are_data_and_are_written_as_they_are(tmp_path):
    rows = [{"prompt": "password: 'a1'", "output": "https://a:b@c/d"}]
    path = runs.Run(tmp_path).write("rows.jsonl", rows)
    assert json.loads(path.read_text()) == rows[0]


# ---- what was masked is asked for again


def test_a_test_says_which_secret_it_needs_again(planted):
    said = planted.err.decode().replace("\n", " ")
    assert "held a secret, which was not recorded" in said
    assert "Pass it again: --model.client_secret" in said


@pytest.fixture
def recorded(planted, monkeypatch):
    """The configuration as a test takes it over, with the words that are typed."""
    from adapters_pl.cli.command_line import CommandLine
    from adapters_pl.cli.configuration import inherited_config

    monkeypatch.chdir(planted.folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    last = Path("runs/planted-1/checkpoints/last.ckpt")
    return lambda *words: inherited_config(last, CommandLine.read("test", words), trusted=True)[0]


AGAIN = {
    "--data.api_key": "x",
    "--data.path": "rows.json",
    "--data.settings": "{}",
    "--data.credentials": "null",
    "--adapter.auth_token": "x",
    "--model.client_secret": "null",
}


@pytest.mark.parametrize("flag", AGAIN)
def test_a_masked_value_is_never_taken_for_the_value(recorded, flag):
    words = [word for key, value in AGAIN.items() if key != flag for word in (key, value)]
    with pytest.raises(
        adapters_pl.inputs.errors.UserError, match=rf"not recorded \('.*\*\*\*.*'\). Pass it again: {flag}"
    ):
        recorded(*words)


def test_what_is_given_again_takes_the_place_of_what_was_masked(recorded):
    config = recorded(*[word for pair in AGAIN.items() for word in pair])
    assert list(masked_parts(config)) == []
    assert config["data"]["init_args"]["val_size"] == 2


def test_another_dataset_needs_no_secret_of_the_first(recorded):
    words = [word for key, value in AGAIN.items() if not key.startswith("--data") for word in (key, value)]
    config = recorded("--data", "InstructionJSON", "--data.test_path", "rows.json", *words)
    assert list(masked_parts(config)) == []


def test_the_command_that_repeats_a_run_has_its_plain_words(planted):
    command = json.loads((planted.folder / "runs/planted-1/environment.json").read_text())["command"]
    words = shlex.split(command)
    assert words[words.index("--data.api_key") + 1] == "***"
    assert words[words.index("--data.path") + 1] == "https://***@host.example/rows.json?token=***"
    assert json.loads(words[words.index("--data.settings") + 1]) == {"token": "***", "jwt": "***"}
    assert words[words.index("--data.val_size") + 1] == "2"
    assert "--model.client_secret=***" in words


# ---- what is masked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://me:se@cret@host/x.json.", "see https://***@host/x.json."),
        ("https://me:se/cret?x@host/simple", "https://***@host/simple"),
        ("https://secret@host/simple", "https://***@host/simple"),
        ("https:/me:secret@host/x.json: no such file", "https:/***@host/x.json: no such file"),
        ("via me:secret@proxy.example:3128", "via ***@proxy.example:3128"),
        ("https://h/x?X-Amz-Signature=abc&v=2&token=q", "https://h/x?X-Amz-Signature=***&v=2&token=***"),
        ("https://h/x?page=Ab3dEf5hIj7kLm9n", "https://h/x?page=***"),
        ("--data.api_key hunter2 --x 3", "--data.api_key *** --x 3"),
        ("--data.api_key='hunter 2'", "--data.api_key='***'"),
        ("{'apiKey': 'hunter', 'x': 1}", "{'apiKey': '***', 'x': 1}"),
        ('"password": "a b c"', '"password": "***"'),
        ("token: Ab3dEf5hIj7kLm9nOp", "token: ***"),
        ("Authorization: Bearer abcdef.123456", "Authorization: Bearer ***"),
        ("authorization: Basic dXNlcjpwdw==", "authorization: Basic ***"),
        *(
            (f"found {shape} here", "found *** here")
            for shape in (
                "hf_" + "a1" * 17,
                "ghp_" + "a1" * 18,
                "github_pat_" + "a1_" * 20,
                "sk-proj-" + "a1" * 20,
                "xoxb-1234567890-abcdef",
                "AKIAIOSFODNN7EXAMPLE",
                "glpat-" + "a1" * 10,
                LONG,
                "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----",
            )
        ),
    ],
)
def test_texts_are_masked(text, expected):
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "name",
    ["token", "key", "hf_token", "api_key", "apiKey", "my_secret", "password", "auth", "credential", "access_token",
     "service_key", "private_key", "passwd", "client_secret", "api_tokens"],
)  # fmt: skip
def test_names_that_say_what_they_hold(name):
    assert masked_values({"data": {"init_args": {name: "swordfish"}}})["data"]["init_args"][name] == "***"
    assert masked_words([f"--data.{name}", "swordfish"])[1] == "***"
    assert masked_words([f"--data.init_args.{name}=swordfish"]) == [f"--data.init_args.{name}=***"]


@pytest.mark.parametrize(
    "name", ["MY_TOKEN", "MYTOKEN", "X_SECRET_KEY", "PGPASSWORD", "DB_PASS", "A_CREDENTIAL", "api_key"]
)
def test_variables_that_hold_secrets_are_masked_wherever_they_occur(monkeypatch, name):
    monkeypatch.setenv(name, "sword/fish 1")
    assert masked("at x?y=sword%2Ffish%201: 'sword/fish 1', oversword/fish 1s") == "at x?y=***: '***', over***s"
    assert masked_values({"x": ["sword/fish 1"]}) == {"x": ["***"]}


@pytest.mark.parametrize(
    ("name", "value"),
    [("SHORT_TOKEN", "abc1234"), ("TOKENIZERS_PARALLELISM", "quickstart"), ("KEYBOARD", "quickstart"),
     ("HF_TOKEN_PATH", "quickstart"), ("SOME", "quickstart"), ("SSH_KEY", str(ROOT)), ("PWD", "quickstart")],
)  # fmt: skip
def test_other_variables_mask_nothing(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert masked(f"--model.base {value}") == f"--model.base {value}"


def test_what_a_command_was_given_is_masked_in_messages_until_the_next(tmp_path):
    begin(["fit", "--data.api_key", "swordfish1", "--data.path", "https://me:open%20sesame@h/x"])
    remember({"data": {"password": "from a file", "key": "question"}})
    assert masked("swordfish1, open sesame and from a file of a question") == "***, *** and *** of a question"
    begin(["test"])
    assert masked("swordfish1") == "swordfish1"


def test_what_holds_no_secret_is_the_same_object():
    config = {"a": [1, (2.5, "x")], "b": {"c": torch.zeros(1)}}
    assert masked_values(config) is config


def test_addresses_of_servers_show_host_and_path_alone():
    assert masked_url("https://me:a/b@h/simple?page=1#x=2") == "https://***@h/simple?page=***#x=***"


# ---- what is not


@pytest.mark.parametrize(
    "words",
    [
        "--data.path /data/my_key/token/rows.json --model.base meta-llama/Llama-3.1-8B-Instruct --model.revision v1.0",
        "--adapter.target_modules [key,query_key_value,k_proj] --adapter.target_modules+ key",
        "--adapter.target_modules key --adapter.parts {query_key_value:[query,key]}",
        "--adapter.virtual_tokens 20 --model.add_tokens [<a>,<b>] --data.max_new_tokens=32",
        "--data.columns {instruction:key,answer:answer_key} --data.pad_token <pad> --data.eos_token </s>",
        "--adapter.peft_config.projection_prng_key 0 --adapter.peft_config.num_virtual_tokens 20",
        "--ckpt_path runs/lora-1/checkpoints/last.ckpt --config llama3_8b_lora.yaml --data.sort_key id",
        "--model.revision 0123456789abcdef0123456789abcdef01234567 --trainer.strategy fsdp --data.key null",
        "--data.path https://huggingface.co/x/resolve/0123456789abcdef0123456789abcdef01234567/f.json?download=true",
        "--data.path https://host:8080/x@v1 --data.mirror ssh://git@github.com/a/b --data.x git+https://h/a/b@v1.0",
        "--data.use_auth_token true --data.token_type text --data.key_name x --trainer.logger.init_args.sort_by_key a",
        "--data.template 'Solve: {instruction} Answer:' --data.system 'The key: think first. Password: none'",
    ],
)
def test_ordinary_arguments_are_kept(words):
    given = shlex.split(words)
    assert masked_words(given) == given
    assert masked(words) == words


@pytest.mark.parametrize(
    "line",
    [
        "unknown key 'trainer.foo': did you mean 'bar'?",
        "data: Rows needs api_key: pass --data.api_key.",
        "data.api_key held a secret. Pass it again: --data.api_key",
        "data.key: expected a text, not '5'.",
        "3,210 tokens/s: of 20 virtual tokens; KeyError: 'token'",
        'path[key] = found; x = dict(key=lambda path: path.stat()); def f(key: str, token: Tensor) -> None:',
        "downloading https://raw.githubusercontent.com/a/b/0123456789abcdef0123456789abcdef01234567/x/train.json",
    ],
)  # fmt: skip
def test_ordinary_lines_are_kept(line):
    assert masked(line) == line


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_kept(path):
    text = path.read_text()
    assert masked(text) == text
    config = yaml.safe_load(text)
    assert masked_values(config) is config


def test_of_the_libraries_arguments_those_that_hold_keys_are_taken_for_secrets():
    classes = {
        getattr(module, name)
        for module in (adapters_pl, L, callbacks, loggers, profilers, strategies, peft, torch.optim)
        for name in dir(module)
        if inspect.isclass(getattr(module, name))
    }
    names = set()
    for cls in classes:
        try:
            names |= set(inspect.signature(cls.__init__).parameters)
        except (ValueError, TypeError):
            continue
    assert {name for name in names if masking._level(name)} == {"api_key"}


def test_a_plain_run_is_recorded_as_it_was_typed(tmp_path, monkeypatch, make_base, rows_file):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(rows_file)]
    words += ["--adapter", "PromptTuning", "--adapter.virtual_tokens", "4", "--data.max_new_tokens", "2"]
    words += ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    monkeypatch.setattr(sys, "argv", ["adapters-pl", *words])
    assert main(words) == 0
    assert main(["test", "--trainer.limit_test_batches", "1", *words[-4:]]) == 0
    texts = [path.read_text() for path in Path("runs").rglob("*") if path.suffix in (".json", ".yaml", ".csv")]
    assert len(texts) >= 5
    assert not any(masking.MASK in text for text in texts)
    assert json.loads(Path("runs/prompttuning-1/environment.json").read_text())["command"] == shlex.join(
        ["adapters-pl", *words]
    )
