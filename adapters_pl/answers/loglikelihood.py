"""Nothing is generated: the option that is likeliest is the answer. Multiple-choice sets only."""

from adapters_pl.answers.protocol import Protocol

LOGLIKELIHOOD = Protocol("loglikelihood", generates=False)
