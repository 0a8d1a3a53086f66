"""How long training and answering take, beside what other tools take for the same."""
