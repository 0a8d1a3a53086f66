"""Broken checkpoints."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.helpers.hostile_cases.common import (
    CANARY,
    LAST,
    RESUME,
    TEST,
    Canary,
    SystemCanary,
    as_fifo,
    as_folder,
    as_link,
    both,
    cut,
    deep_in_pickle,
    flip,
    ours_with,
    pickled,
    place,
    put,
    remove,
    stored_with,
    torch_pickled,
)
from tests.helpers.hostile_inputs import Case


def checkpoint_cases() -> Iterator[Case]:
    """Broken checkpoints: the file, what it says of itself, and what Lightning keeps in it."""
    path = str(LAST)
    files: dict[str, Callable[[], Any]] = {
        "empty": put(path, b""),
        **{f"cut at {share:.0%}": cut(path, share) for share in (0.01, 0.3, 0.6, 0.9, 0.999)},
        **{f"overwritten at {share:.0%}": flip(path, share) for share in (0.0, 0.1, 0.3, 0.5, 0.8, 0.97)},
        "garbage": put(path, os.urandom(4000)),
        "text": put(path, "hello\n"),
        "zip of a text": lambda: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"),
        "zip that climbs": lambda: zipfile.ZipFile(path, "w").writestr(f"../{CANARY}", "hello"),
        "empty zip": lambda: zipfile.ZipFile(path, "w").close(),
        "canary": pickled(path, Canary),
        "canary by os.system": pickled(path, SystemCanary),
        "canary in a zip": torch_pickled(path, lambda: {"adapters_pl": Canary(), "state_dict": {}}),
        "canary in the state": stored_with(lambda stored: stored.update(state_dict=Canary())),
        "canary in callbacks": stored_with(lambda stored: stored["callbacks"].update(x=Canary())),
        "a module": torch_pickled(path, lambda: torch.nn.Linear(2, 2)),
        "a list": torch_pickled(path, lambda: [1, 2]),
        "a tensor": torch_pickled(path, lambda: torch.zeros(3)),
        "null": torch_pickled(path, lambda: None),
        "of another tool": torch_pickled(path, lambda: {"state_dict": {"a": torch.zeros(2)}, "epoch": 1}),
        "safetensors": lambda: shutil.copy("adapter/adapter_model.safetensors", path),
        "a folder": as_folder(path),
        "a pipe": as_fifo(path),
        "a dangling link": as_link(path, "nowhere"),
        "a link to itself": as_link(path, "last.ckpt"),
        "deep list in config": deep_in_pickle(100_000, "adapters_pl", "config"),
        "deep list in loops": deep_in_pickle(50_000, "loops"),
        "deep list in adapters": deep_in_pickle(900, "adapters_pl", "adapters"),
        "legacy format": lambda: torch.save(
            torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False
        ),
    }
    for what, spoil in files.items():
        expect = "any" if what == "legacy format" or "overwritten" in what else "refused"
        yield Case(f"ckpt/test {what}", TEST, spoil, expect, ("last.ckpt",) if expect == "refused" else (), how=what)
    for what in ("empty", "cut at 60%", "canary", "canary in callbacks", "a list", "deep list in loops", "a folder"):
        yield Case(f"ckpt/fit {what}", RESUME, files[what], "any", ("last.ckpt",), how=what)
        yield Case(f"ckpt/export {what}", ["export", "--out", "out"], files[what], "any", ("last.ckpt",), how=what)
    values: dict[str, Any] = {
        "null": None,
        "int": -7,
        "str": "x",
        "list": [1],
        "dict": {"a": 1},
        "huge": "x" * 2_000_000,
        "tensor": torch.zeros(3),
        "nan": float("nan"),
    }
    keys: list[tuple[Any, ...]] = [
        ("format",),
        ("base",),
        ("base", "id"),
        ("base", "revision"),
        ("base", "fingerprint"),
        ("base", "fingerprint", "structure"),
        ("base", "fingerprint", "weights"),
        ("base", "fingerprint", "sample"),
        ("base", "fingerprint", "dtype"),
        ("base", "quantization"),
        ("add_tokens",),
        ("adapters",),
        ("adapters", 0),
        ("adapters", 0, "class_path"),
        ("adapters", 0, "init_args"),
        ("adapters", 0, "init_args", "rank"),
        ("config",),
        ("config", "model"),
        ("config", "model", "class_path"),
        ("config", "model", "init_args"),
        ("config", "model", "init_args", "base"),
        ("config", "model", "init_args", "lr"),
        ("config", "model", "init_args", "add_tokens"),
        ("config", "adapter"),
        ("config", "adapter", "class_path"),
        ("config", "adapter", "init_args"),
        ("config", "adapter", "init_args", "rank"),
        ("config", "adapter", "init_args", "target_modules"),
        ("config", "data"),
        ("config", "data", "class_path"),
        ("config", "data", "init_args"),
        ("config", "data", "init_args", "path"),
        ("config", "data", "init_args", "batch_size"),
        ("config", "trainer"),
        ("config", "trainer", "max_steps"),
        ("config", "trainer", "precision"),
        ("config", "trainer", "callbacks"),
        ("config", "seed_everything"),
    ]
    order = list(values)
    for number, key in enumerate(keys):
        # Every key loses its value, and takes some of the others in turn.
        chosen = ["missing", *dict.fromkeys(["null", *(order[(number + step) % len(order)] for step in (1, 3, 5))])]
        for kind in chosen:
            change = place(*key, drop=True) if kind == "missing" else place(*key, value=values[kind])
            how = f"adapters_pl.{'.'.join(map(str, key))}: {kind}"
            words = RESUME if "trainer" in key or "seed_everything" in key else TEST
            yield Case(f"recorded/{'.'.join(map(str, key))} {kind}", words, ours_with(change), "any", how=how)
    for key in (("adapters",), ("base", "id"), ("base", "fingerprint"), ("adapters", 0, "init_args", "rank")):
        for kind in ("missing", "null", "list", "str"):
            change = place(*key, drop=True) if kind == "missing" else place(*key, value=values[kind])
            name = ".".join(map(str, key))
            yield Case(f"recorded/export {name} {kind}", ["export", "--out", "out"], ours_with(change), "any", how=name)
    tampered: dict[str, Callable[[dict[str, Any]], Any]] = {
        "state NaN": lambda s: next(iter(s["state_dict"].values())).fill_(float("nan")),
        "state infinite": lambda s: next(iter(s["state_dict"].values())).fill_(float("inf")),
        "state one other shape": lambda s: s["state_dict"].update({next(iter(s["state_dict"])): torch.zeros(3, 5)}),
        "state one scalar": lambda s: s["state_dict"].update({next(iter(s["state_dict"])): torch.tensor(1.0)}),
        "state one int": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.zeros_like(next(iter(s["state_dict"].values())), dtype=torch.int64)}
        ),
        "state one bool": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.zeros_like(next(iter(s["state_dict"].values())), dtype=torch.bool)}
        ),
        "state one complex": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.zeros_like(next(iter(s["state_dict"].values())), dtype=torch.complex64)}
        ),
        "state one missing": lambda s: s["state_dict"].pop(next(iter(s["state_dict"]))),
        "state one more": lambda s: s["state_dict"].update({"model.surplus": torch.zeros(2)}),
        "state one more outside": lambda s: s["state_dict"].update({"surplus": torch.zeros(2)}),
        "state a base weight more": lambda s: s["state_dict"].update({"model.lm_head.weight": torch.zeros(320, 32)}),
        "state sparse": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): next(iter(s["state_dict"].values())).to_sparse()}
        ),
        "state empty": lambda s: s["state_dict"].clear(),
        "state missing": lambda s: s.pop("state_dict"),
        "state a list": lambda s: s.update(state_dict=[1]),
        "state of a text": lambda s: s["state_dict"].update({next(iter(s["state_dict"])): "x"}),
        "state key a number": lambda s: s["state_dict"].update({3: torch.zeros(2)}),
        "state quantised": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.quantize_per_tensor(torch.zeros(2, 32), 0.1, 0, torch.qint8)}
        ),
        "state expanded": lambda s: s["state_dict"].update(
            {next(iter(s["state_dict"])): torch.zeros(1).expand(1 << 40)}
        ),
    }
    for what, change in tampered.items():
        for words in (TEST, RESUME, ["export", "--out", "out"]):
            if words is TEST or what in (
                "state NaN",
                "state one other shape",
                "state one missing",
                "state one complex",
            ):
                yield Case(f"state/{words[0]} {what[6:]}", words, stored_with(change), "any", how=what)
    lightning: list[tuple[Any, ...]] = [
        ("loops",),
        ("loops", "fit_loop"),
        ("loops", "fit_loop", "epoch_progress"),
        ("loops", "fit_loop", "epoch_loop.batch_progress"),
        ("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress"),
        ("loops", "validate_loop"),
        ("optimizer_states",),
        ("optimizer_states", 0),
        ("optimizer_states", 0, "state"),
        ("optimizer_states", 0, "state", 0),
        ("optimizer_states", 0, "state", 0, "exp_avg"),
        ("optimizer_states", 0, "state", 0, "step"),
        ("optimizer_states", 0, "param_groups"),
        ("optimizer_states", 0, "param_groups", 0, "lr"),
        ("optimizer_states", 0, "param_groups", 0, "params"),
        ("optimizer_states", 0, "param_groups", 0, "betas"),
        ("lr_schedulers",),
        ("lr_schedulers", 0),
        ("lr_schedulers", 0, "last_epoch"),
        ("lr_schedulers", 0, "base_lrs"),
        ("lr_schedulers", 0, "lr_lambdas"),
        ("callbacks",),
        ("resume",),
        ("resume", "epoch"),
        ("resume", "rows"),
        ("resume", "of"),
        ("resume", "batches"),
        ("resume", "validating"),
        ("resume", "rates"),
        ("resume", "metrics"),
        ("resume", "metrics", "logged"),
        ("resume", "random"),
        ("global_step",),
        ("epoch",),
        ("pytorch-lightning_version",),
        ("hyper_parameters",),
    ]
    plain = [kind for kind in order if kind != "huge"]
    for number, key in enumerate(lightning):
        chosen = ["missing", *dict.fromkeys(plain[(number + step) % len(plain)] for step in (0, 1, 3))]
        for kind in chosen:
            if kind == "missing" and key[0] == "hyper_parameters":
                continue
            change = place(*key, drop=True) if kind == "missing" else place(*key, value=values[kind])
            how = f"{'.'.join(map(str, key))}: {kind}"
            name = f"{'.'.join(map(str, key))} {kind}"
            if number % 3 == 0 or kind in ("missing", "list", "int"):
                yield Case(f"lightning/fit {name}", RESUME, stored_with(change), "any", how=how)
            if kind in ("missing", "str") and len(key) == 1:
                yield Case(f"lightning/test {name}", TEST, stored_with(change), "any", how=how)
    for what, change in {
        "rows -5": place("resume", "rows", value=-5),
        "rows beyond": place("resume", "rows", value=10**9),
        "epoch -3": place("resume", "epoch", value=-3),
        "epoch 10**12": place("resume", "epoch", value=10**12),
        "batches nan": place("resume", "batches", value=float("nan")),
        "global_step -1": place("global_step", value=-1),
        "global_step 10**18": place("global_step", value=10**18),
        "global_step 10**30": place("global_step", value=10**30),
        "rates two": place("resume", "rates", value=[1.0, 2.0]),
        "rates zero": place("resume", "rates", value=[0.0]),
        "rates text": place("resume", "rates", value=["x"]),
        "metrics text": place("resume", "metrics", value={"logged": {"val_loss": "x"}}),
        "metrics unknown": place("resume", "metrics", value={"no_such": {}}),
        "best_model_path elsewhere": lambda s: [
            c.update(best_model_path="../elsewhere/x.ckpt") for c in s["callbacks"].values() if "best_model_path" in c
        ],
        "best_model_path number": lambda s: [
            c.update(best_model_path=3) for c in s["callbacks"].values() if "best_model_path" in c
        ],
        "dirpath elsewhere": lambda s: [
            c.update(dirpath="../elsewhere") for c in s["callbacks"].values() if "dirpath" in c
        ],
        "callbacks of texts": lambda s: s.update(callbacks=dict.fromkeys(s["callbacks"], "x")),
        "callbacks empty": lambda s: s.update(callbacks={key: {} for key in s["callbacks"]}),
        "callbacks of another class": lambda s: s["callbacks"].update({"evil.C": {"x": 1}}),
        "two optimizers": lambda s: s["optimizer_states"].append(s["optimizer_states"][0]),
        "no optimizer": lambda s: s["optimizer_states"].clear(),
        "two schedulers": lambda s: s["lr_schedulers"].append(s["lr_schedulers"][0]),
        "moments NaN": lambda s: s["optimizer_states"][0]["state"][0]["exp_avg"].fill_(float("nan")),
        "moments of another shape": lambda s: s["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3, 3)),
        "moments scalar": lambda s: s["optimizer_states"][0]["state"][0].update(exp_avg=torch.tensor(1.0)),
        "a parameter more": lambda s: s["optimizer_states"][0]["param_groups"][0]["params"].append(999),
        "lr text": lambda s: s["optimizer_states"][0]["param_groups"][0].update(lr="x"),
        "lr nan": lambda s: s["optimizer_states"][0]["param_groups"][0].update(lr=float("nan")),
        "capturable": lambda s: s["optimizer_states"][0]["param_groups"][0].update(capturable=True),
        "random of a text": lambda s: s["resume"].update(random="x"),
        "random of short tensors": lambda s: s["resume"].update(
            random=_mapped(s["resume"]["random"], lambda t: torch.zeros(3, dtype=torch.uint8))
        ),
        "random of floats": lambda s: s["resume"].update(random=_mapped(s["resume"]["random"], lambda t: t.float())),
        "random empty": lambda s: s["resume"].update(random=[]),
        "precision plugin": lambda s: s.update(MixedPrecision={"scale": "x"}),
        "data module state": lambda s: s.update(InstructionJSON={"x": 1}),
        "hparams_name": lambda s: s.update(hparams_name="x", hyper_parameters=[1], hparams_type="os.system"),
    }.items():
        yield Case(f"lightning/fit {what}", RESUME, stored_with(change), "any", how=what)


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    return [_mapped(value, change) for value in tree] if isinstance(tree, list | tuple) else tree


def _shard() -> None:
    """The checkpoint as a directory of one part, as FSDP writes it."""
    stored = torch.load(LAST, weights_only=True)
    os.unlink(LAST)
    shards: dict[str, torch.Tensor] = {}
    for key in list(stored["state_dict"]):
        shards[f"/state_dict/{key}"] = stored["state_dict"][key]
        stored["state_dict"][key] = {"__stored_in_parts__": f"/state_dict/{key}"}
    folder = LAST.with_name("last.ckpt-2")
    folder.mkdir()
    LAST.symlink_to(folder.name)
    torch.save(shards, LAST / "part-0.pt")
    torch.save({"parts": 1, "checkpoint": stored}, LAST / "rest.pt")


def _rest(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    return both(_shard, stored_with(change, LAST / "rest.pt"))


def sharded_cases() -> Iterator[Case]:
    """Broken checkpoints that several processes wrote."""
    part, rest = LAST / "part-0.pt", LAST / "rest.pt"
    first = lambda stored: next(iter(stored["checkpoint"]["state_dict"]))  # noqa: E731
    kinds: dict[str, tuple[Callable[[], Any], str]] = {
        "whole": (_shard, "fine"),
        "no part": (both(_shard, remove(part)), "refused"),
        "part empty": (both(_shard, put(part, b"")), "refused"),
        "part cut": (both(_shard, cut(part, 0.5)), "refused"),
        "part garbage": (both(_shard, put(part, os.urandom(500))), "refused"),
        "part canary": (both(_shard, pickled(part, Canary)), "refused"),
        "part a list": (both(_shard, torch_pickled(part, lambda: [1])), "refused"),
        "part of texts": (both(_shard, torch_pickled(part, lambda: {"a": "b"})), "refused"),
        "part a folder": (both(_shard, as_folder(part)), "refused"),
        "part a pipe": (both(_shard, as_fifo(part)), "refused"),
        "part NaN": (
            both(_shard, stored_with(lambda s: next(iter(s.values())).fill_(float("nan")), part)),
            "refused",
        ),
        "rest empty": (both(_shard, put(rest, b"")), "refused"),
        "rest cut": (both(_shard, cut(rest, 0.7)), "refused"),
        "rest canary": (both(_shard, pickled(rest, SystemCanary)), "refused"),
        "rest a list": (both(_shard, torch_pickled(rest, lambda: [1])), "refused"),
        "rest null": (both(_shard, torch_pickled(rest, lambda: None)), "refused"),
        "parts -1": (_rest(lambda s: s.update(parts=-1)), "refused"),
        "parts 0": (_rest(lambda s: s.update(parts=0)), "refused"),
        "parts text": (_rest(lambda s: s.update(parts="x")), "refused"),
        "parts null": (_rest(lambda s: s.update(parts=None)), "refused"),
        "parts float": (_rest(lambda s: s.update(parts=1.0)), "refused"),
        "parts 10**12": (_rest(lambda s: s.update(parts=10**12)), "refused"),
        "parts missing": (_rest(lambda s: s.pop("parts")), "refused"),
        "checkpoint missing": (_rest(lambda s: s.pop("checkpoint")), "refused"),
        "checkpoint a list": (_rest(lambda s: s.update(checkpoint=[1])), "refused"),
        "checkpoint ours missing": (_rest(lambda s: s["checkpoint"].pop("adapters_pl")), "refused"),
        "stored elsewhere": (
            _rest(lambda s: s["checkpoint"]["state_dict"].update({first(s): {"__stored_in_parts__": "/no/such"}})),
            "refused",
        ),
        "stored in a number": (
            _rest(lambda s: s["checkpoint"]["state_dict"].update({first(s): {"__stored_in_parts__": 3}})),
            "refused",
        ),
        "stored in a list": (
            _rest(lambda s: s["checkpoint"]["state_dict"].update({first(s): {"__stored_in_parts__": [1]}})),
            "refused",
        ),
    }
    for what, (spoil, expect) in kinds.items():
        says = ("last.ckpt",) if expect == "refused" else ()
        yield Case(f"sharded/test {what}", TEST, spoil, expect, says, how=f"sharded: {what}")
    for what in ("whole", "no part", "part canary", "parts text", "rest cut", "checkpoint a list"):
        spoil, expect = kinds[what]
        yield Case(f"sharded/fit {what}", RESUME, spoil, expect if what != "whole" else "any", how=f"sharded: {what}")
        yield Case(f"sharded/export {what}", ["export", "--out", "out"], spoil, expect, how=f"sharded: {what}")
