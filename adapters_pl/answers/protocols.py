"""The protocols by name, and the answer that a text states."""

from __future__ import annotations

from adapters_pl.answers.llm_adapters import LLM_ADAPTERS
from adapters_pl.answers.loglikelihood import LOGLIKELIHOOD
from adapters_pl.answers.protocol import Protocol
from adapters_pl.answers.sets import spec_named
from adapters_pl.answers.strict import STRICT
from adapters_pl.inputs.errors import UserError, did_you_mean

#: Every protocol by its name: one file each, and a row here.
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (STRICT, LLM_ADAPTERS, LOGLIKELIHOOD)}


def protocol_named(name: str) -> Protocol:
    """The protocol ``name``; raises ``UserError`` with the nearest names if there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol '{name}' does not exist: {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def extract(text: str, dataset: str, protocol: str = "strict") -> str | None:
    """The answer that ``text`` states for ``dataset`` (by its published name, or its class's), or ``None``."""
    reading, wanted = protocol_named(protocol), spec_named(dataset)
    return reading.extract(text, wanted.kind, wanted.options, set_name=wanted.name)
