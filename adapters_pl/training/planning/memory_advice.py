"""An estimate of memory in words: whether a run fits, and the smallest change that makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from adapters_pl.inputs.errors import UserError
from adapters_pl.training.hardware import free_host_memory, free_memory
from adapters_pl.training.planning.memory import HELD, Estimate, MemoryModel, Setup

#: The share of free memory that may be planned for: allocators round up, and libraries have workspaces of their own.
USABLE = 0.95
#: The most devices that are tried when a base is to be divided.
_MOST_DEVICES = 64


def amount(size: float) -> str:
    """``14.2 GiB``, or ``214 MiB`` where it is less than one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


class Forecast:
    """What a run will need, beside what this machine has free now.

    Args:
        model: of the base and the adapters.
        setup: of the run.
    """

    def __init__(self, model: MemoryModel, setup: Setup) -> None:
        self.model = model
        self.setup = setup

    @cached_property
    def room(self) -> int | None:
        """Bytes that each device has for it; ``None`` where that is not known."""
        return free_memory(self.setup.accelerator, self.setup.devices)

    @cached_property
    def host(self) -> int | None:
        """Bytes that the machine has for it, where its devices have memory of their own; else ``None``."""
        return None if self.setup.on_host else free_host_memory()

    @cached_property
    def estimate(self) -> Estimate:
        """What the run needs."""
        return self.model.estimate(self.setup)

    @property
    def fits(self) -> bool:
        """Whether there is enough; where it is not known how much there is, there is."""
        return self._fits(self.estimate)

    def _fits(self, estimate: Estimate) -> bool:
        if self.room is None:
            return True
        return estimate.total <= USABLE * self.room and (self.host is None or estimate.host <= USABLE * self.host)

    def line(self) -> str:
        """One line: what each device needs, of how much, what for, whether that fits, and what would."""
        estimate, device = self.estimate, "GPU" if self.setup.accelerator == "cuda" else "process"
        count = self.setup.devices * self.setup.nodes
        where = f" on each of {count} {device}{'es' if device == 'process' else 's'}" if count > 1 else ""
        of = "" if self.room is None else f" of {amount(self.room)} free"
        parts = ", ".join(f"{name} {amount(size)}" for name, size in estimate.parts.items())
        if estimate.problem:
            parts = f"{parts.rpartition(',')[0]}; activations are not known: {estimate.problem}"
        about = "at least" if estimate.problem else "about"
        return f"memory: {about} {amount(estimate.total)}{of}{where} ({parts}); {self._verdict(device)}"

    def _verdict(self, device: str) -> str:
        if not self.fits:
            if self.host is not None and self.estimate.host > USABLE * self.host:
                need = f"the host needs {amount(self.estimate.host)} of {amount(self.host)} free to load the base"
                return f"does not fit: {need}. {self.advice()}"
            return f"does not fit. {self.advice()}"
        if self.room is None:
            return f"there is no {device} here to compare with"
        return "may fit" if self.estimate.problem else "fits"

    def advice(self) -> str:
        """The first of :func:`easier` that fits, in words."""
        for option, setup in easier(self.setup, self.model):
            # Only what could fit is worth being traced.
            if self._fits(self.model.held(setup)) and self._fits(estimate := self.model.estimate(setup)):
                return f"Try {option}: about {amount(estimate.total)}."
        return "No option makes it fit: take a smaller base, or more memory."

    def refuse(self) -> None:
        """Fail where the base alone is more than there is; anything less is worth a try.

        Raises:
            UserError: with what would fit.
        """
        if self.room is not None and self.estimate.base > self.room:
            raise UserError(
                f"The base takes {amount(self.estimate.base)} and there are {amount(self.room)} free. {self.advice()}"
            )

    def relief(self) -> str:
        """The mildest change that takes at least a tenth less, in words: for a run that had too little after all."""
        for option, setup in easier(self.setup, self.model):
            if (estimate := self.model.estimate(setup)).total <= 0.9 * self.estimate.total:
                return f"Try {option}: about {amount(estimate.total)} instead of {amount(self.estimate.total)}."
        return "Nothing known here takes much less: take a smaller base, or more memory."


def easier(setup: Setup, model: MemoryModel) -> Iterator[tuple[str, Setup]]:
    """Options that make a run need less, with what it is then, the mildest first.

    What leaves the results alone comes first, by itself and together; then the base in fewer bits, and then more
    devices, each with the former.
    """
    for base, lighter in _alone_or_both(setup, model, (_bfloat16, _quantising, _sharding)):
        for batch, changed in _alone_or_both(lighter, model, (_checkpointing, _smaller_batches)):
            if option := f"{batch} {base}".strip():
                yield option, changed


Changes = Callable[[Setup, MemoryModel], Iterator[tuple[str, Setup]]]


def _alone_or_both(setup: Setup, model: MemoryModel, kinds: Sequence[Changes]) -> Iterator[tuple[str, Setup]]:
    """No change, then those of each kind alone, then those of the first and the last kind at once."""
    yield "", setup
    for kind in kinds:
        yield from kind(setup, model)
    for option, changed in kinds[0](setup, model):
        yield from ((f"{option} {more}", both) for more, both in kinds[-1](changed, model))


def _checkpointing(setup: Setup, model: MemoryModel) -> Iterator[tuple[str, Setup]]:
    if not setup.activation_checkpointing and model.skeleton.supports_gradient_checkpointing:
        yield "--model.activation_checkpointing true", replace(setup, activation_checkpointing=True)


def _smaller_batches(setup: Setup, model: MemoryModel) -> Iterator[tuple[str, Setup]]:
    """Half the rows in twice the batches, and so on: the optimizer's steps stay the same."""
    rows, batches = setup.batch_size, setup.accumulate
    while rows > 1:
        smaller = rows // 2 if rows % 2 == 0 else 1
        rows, batches = smaller, batches * (rows // smaller)
        evaluated = min(setup.eval_batch_size, rows)
        size = f"max_tokens_per_batch {rows * setup.tokens}" if setup.by_tokens else f"batch_size {rows}"
        option = f"--data.{size} --trainer.accumulate_grad_batches {batches}"
        if evaluated < setup.eval_batch_size:
            option += f" --data.eval_batch_size {evaluated}"
        yield option, replace(setup, batch_size=rows, accumulate=batches, eval_batch_size=evaluated)


def _bfloat16(setup: Setup, model: MemoryModel) -> Iterator[tuple[str, Setup]]:
    if setup.dtype.itemsize > 2 and setup.precision not in HELD:
        yield "--model.dtype bfloat16", replace(setup, dtype=torch.bfloat16)


def _quantising(setup: Setup, model: MemoryModel) -> Iterator[tuple[str, Setup]]:
    source = model.module.source
    if setup.quantization is None and setup.division != "fsdp" and not (source.random_init or source.stored_as):
        yield "--model.quantization 8bit", replace(setup, quantization="8bit")
        yield "--model.quantization 4bit", replace(setup, quantization="4bit")


def _sharding(setup: Setup, model: MemoryModel) -> Iterator[tuple[str, Setup]]:
    """More GPUs; processes of one machine share its memory, so that dividing among them gains nothing."""
    parts = setup.parts
    while not setup.on_host and setup.quantization is None and parts < _MOST_DEVICES:
        parts = 2 * parts
        devices, nodes = min(parts, 8), -(-parts // 8)
        option = f"--trainer.strategy fsdp --trainer.devices {devices}"
        option += f" --trainer.num_nodes {nodes}" if nodes > 1 else ""
        yield option, replace(setup, division="fsdp", devices=devices, nodes=nodes)
