"""Ray, on a cluster or on this machine alone."""

import os
from typing import Final

OBJECT_STORE_BYTES: Final = 256_000_000


def connect(address: str | None, cores: int) -> None:
    """Connect to a cluster; without an address, start Ray on this machine alone, with so many cores to give.

    Those are promises: on a small machine all processes share what there is.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if address is not None:
        ray.init(address=address)
    else:
        ray.init(
            address="local",  # also where a cluster runs on this machine
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
