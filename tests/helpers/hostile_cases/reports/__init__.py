"""Runs and studies of strangers, as ``report``, ``runs`` and ``compare`` see them."""
