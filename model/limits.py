"""What the system lets this process have."""

import resource
from contextlib import suppress


def may_open_all_files() -> None:
    """Use all of the system's bound on open files: the usual 1,024 is for programs that call `select`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS takes no number as large as its own bound
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
