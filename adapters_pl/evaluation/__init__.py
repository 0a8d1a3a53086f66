"""From a model and a set's examples to records, and from records to results."""
