"""Studies: their files, their directories, their storage."""
