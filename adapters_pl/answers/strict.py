"""The default: the prompt that training used, greedy or sampled, extraction made for each kind of answer."""

from adapters_pl.answers.protocol import Protocol

STRICT = Protocol("strict", samples=True)
