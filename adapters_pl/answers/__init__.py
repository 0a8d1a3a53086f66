"""From a text to the answer it states, and whether it is right: one file a way of reading, one row a set."""

from adapters_pl.answers.extractors import option_texts
from adapters_pl.answers.protocol import Protocol
from adapters_pl.answers.protocols import PROTOCOLS, extract, protocol_named
from adapters_pl.answers.sets import SPECS, SUITES, Kind, SetSpec, published_name, sets_of, spec_named

__all__ = [
    "PROTOCOLS",
    "SPECS",
    "SUITES",
    "Kind",
    "Protocol",
    "SetSpec",
    "extract",
    "option_texts",
    "protocol_named",
    "published_name",
    "sets_of",
    "spec_named",
]
