"""What we use of torch that it does not promise to keep, each behind a name of ours.

``tests/compat/test_torch.py`` goes red where a new version changes one of them.
"""

from __future__ import annotations

import torch

#: What gloo's connections say, which end in plain errors: the second is of a connection that another thread of this
#: process has timed out on.
_LOST = ("/gloo/", "Application timeout caused pair closure")


def lost_process(error: BaseException) -> bool:
    """Whether ``error`` says that another process of the job has ended, or has not answered within the timeout."""
    if isinstance(error, (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
