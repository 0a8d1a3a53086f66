"""Internals of other libraries, one file a library, each behind a name of ours and with a test of its contract."""
