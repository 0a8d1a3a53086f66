"""Checkpoints: what they hold, how they are read without running anything, and how they are written."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import isabstract
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor

from adapters_pl.adapters import Adapter
from adapters_pl.compat import dcp as sharded_checkpoint
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.names import arguments_of, loaded, public_name
from adapters_pl.inputs.untrusted import has_shape, is_plain, reading, reason_of
from adapters_pl.models.fingerprint import same_base
from adapters_pl.runs.at_once import replacing
from adapters_pl.runs.run import GO_ON, writing

#: What checkpoints say that they are. In format 1 the base's fingerprint holds values of its embedding alone.
FORMAT = 2


#: What a checkpoint says of itself.
_SHAPE = {
    "format": int,
    "base": {
        "id": str,
        "revision": (str, None),
        "fingerprint": {"structure": str, "sample": [(float, int)]},
    },
    "adapters": [{"class_path": str, "init_args": {str: object}}],
}
#: What Lightning keeps beside it, where it does.
_SHAPE_OF_LIGHTNING = {
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "loops": {"fit_loop": {str: object}},
    "callbacks": {str: object},
    "optimizer_states": [{"state": {}, "param_groups": [{"params": [int]}]}],
    "lr_schedulers": [{str: object}],
}
_SHAPE_OF_FINGERPRINT = {"dtype": str, "weights": {str: [(float, int)]}}


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint of ours says of itself, and its tensors. Nothing in it is executed.

    Raises:
        UserError: it cannot be read, or it is not one of ours.
    """
    try:
        if sharded_checkpoint.is_sharded(path):
            stored = sharded_checkpoint.load(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        ours, state = stored["adapters_pl"], stored["state_dict"]
        shaped = all(has_shape(stored[key], shape) for key, shape in _SHAPE_OF_LIGHTNING.items() if key in stored)
        groups = [state["param_groups"] for state in stored.get("optimizer_states", ())] if shaped else []
        if not (shaped and is_plain(groups) and is_plain(stored.get("lr_schedulers"))):
            raise UserError(
                f"{path}: what Lightning keeps in it is not as Lightning writes it; take another checkpoint."
            )
        check_checkpoint(ours, state, path)
        return ours, state
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint of adapters-pl: {unread(error)}") from error


def check_checkpoint(ours: Any, state: Any, where: object) -> None:
    """Raise ``UserError`` unless ``ours`` and ``state`` have the form of this format, or of an earlier one."""
    if has_shape(ours, {"format": int}) and ours["format"] > FORMAT:
        raise UserError(f"{where} has format {ours['format']}, of a later adapters-pl; this one reads up to {FORMAT}.")
    fine = (
        has_shape(ours, _SHAPE)
        and is_plain(ours)
        and (ours["format"] < 2 or has_shape(ours["base"]["fingerprint"], _SHAPE_OF_FINGERPRINT))
        and has_shape(ours.get("add_tokens"), ([str], None))
        and ours["base"].get("quantization") in (None, "8bit", "4bit")
        and has_shape(state, {str: Tensor})
        and all(value.layout is torch.strided and not value.is_quantized for value in state.values())
    )
    if not fine:
        raise UserError(f"{where}: what it says of itself is not as adapters-pl writes it; take another checkpoint.")


def refuse_other_checkpoint(
    checkpoint: dict[str, Any],
    base: str,
    fingerprint: dict[str, Any],
    adapters: list[dict[str, Any]],
    state: Mapping[str, Tensor],
    where: str,
) -> None:
    """Raise ``UserError`` for a checkpoint that is none of ours, or is of another base or of other adapters.

    ``base`` and its ``fingerprint``, ``adapters`` (each as it is described in a checkpoint) and their ``state`` are
    those of the model that would take it.
    """
    ours, stored = checkpoint.get("adapters_pl"), checkpoint.get("state_dict")
    if not ours:
        raise UserError("This checkpoint was not written by adapters-pl: it does not say which adapter it holds.")
    check_checkpoint(ours, stored, "This checkpoint")
    assert stored is not None
    if not same_base(ours["base"]["fingerprint"], fingerprint):
        raise UserError(
            f"This checkpoint belongs to another base: it was trained on '{ours['base']['id']}', "
            f"this run has '{base}'. Pass --model.base with the base of the checkpoint."
        )
    for name, value in stored.items():
        # What a subclass holds outside the base may be whole numbers.
        other_kind = name in state and state[name].is_floating_point() != value.is_floating_point()
        if other_kind or not value.isfinite().all():
            raise UserError(f"{where}: {name} holds values that are no finite numbers; take another checkpoint.")
    shapes = {name: value.shape for name, value in stored.items() if name.startswith("model.")}
    if shapes != {name: value.shape for name, value in state.items()}:
        raise UserError(
            f"This checkpoint's adapter differs from the configured one: it holds {_in_words(ours['adapters'])}, "
            f"this run has {_in_words(adapters)}. Leave --adapter out to rebuild the checkpoint's own."
        )


def _in_words(adapters: list[dict[str, Any]]) -> str:
    names = []
    for adapter in adapters:
        arguments = ", ".join(f"{key}={value}" for key, value in adapter["init_args"].items() if value is not None)
        names.append(f"{adapter['class_path'].rpartition('.')[2]}({arguments})")
    return ", ".join(sorted(names)) or "none"


def unread(error: Exception) -> str:
    """Why PyTorch did not read a file; where it is a pickle of more, without its advice to run that anyway."""
    if isinstance(error, pickle.UnpicklingError | RuntimeError | EOFError):
        return "it holds something else, of which nothing was run, or it is cut."
    return reason_of(error)


def build_adapter(described: Any, where: object = "checkpoint") -> Adapter:
    """The adapter that ``{class_path, init_args}`` describes; only a class that is imported already is built.

    Raises:
        UserError: it is no such class, or its arguments are wrong.
    """
    if not has_shape(described, {"class_path": str, "init_args": {str: object}}) or not is_plain(described):
        raise UserError(f"{where}: an adapter in it is no class with arguments; take another checkpoint.")
    path, arguments = public_name(described["class_path"]), dict(described["init_args"])
    cls: Any = loaded(Adapter).get(path)
    if cls is None or isabstract(cls):
        raise UserError(
            f"{where} names the adapter '{path}', which is not one of adapters-pl's; it was not imported. If you trust "
            f"it: import its module first, or --trust_checkpoint by the command line."
        )
    if unknown := arguments.keys() - arguments_of(cls).keys():
        raise UserError(f"{where}: {path} takes no argument '{min(unknown)}'; take another checkpoint.")
    with reading(where, "take another checkpoint"):
        adapter = cls(**arguments)
        check_arguments(adapter, where)
    return adapter


def check_arguments(adapter: Adapter, where: object) -> None:
    """Raise ``UserError`` where an adapter's arguments are not of the types that its constructor declares."""
    arguments = {key: value for key, value in adapter.init_args().items() if value is not None and key != "peft_config"}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(adapter), skip={"peft_config"})
    try:
        parser.parse_object(arguments)
    except ArgumentError as error:
        key = re.search(r'Parser key "([^"]+)"', str(error))
        named = key[1] if key else "an argument"
        value = repr(arguments.get(named))[:80]
        raise UserError(f"{where}: {named} cannot be {value}; mend it, or take another copy.") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and only then puts it there.

    Strategies that write one file call this on rank 0 alone. An error there would leave the other processes
    waiting for ever, so where there are several it is kept in ``failure`` until all of them can stop together
    (see :class:`~adapters_pl.training.guards.Guards`).
    """

    def __init__(self) -> None:
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` at ``path``, whole or not at all.

        Raises:
            UserError: the disk is full or cannot be written; what was at ``path`` is still there.
        """
        path = Path(path)
        with keeping_failure(self, path, checkpoint):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at ``path``, be it a file or the shards that several processes wrote."""
        if sharded_checkpoint.is_sharded(Path(path)):
            return sharded_checkpoint.load(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


@contextmanager
def keeping_failure(io: Any, path: Path, checkpoint: dict[str, Any]) -> Iterator[None]:
    """Word what the system refuses; of several processes each keeps it until all can stop together."""
    try:
        with writing(path, path.parent, GO_ON, f" at step {checkpoint.get('global_step')}"):
            yield
    except UserError as error:
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            raise
        io.failure = str(error)
