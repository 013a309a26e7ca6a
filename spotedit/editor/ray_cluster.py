"""Connect to Ray, for the commands that edit in several processes (`--ray`)."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

from .errors import BadInput


@contextmanager
def ray_cluster(
    address: str | None, library: Literal["data", "serve"], **options: Any
) -> Iterator[Any]:
    """Connect to Ray during the block, and yield its module. An older connection is kept.

    Args:
        address: of a cluster, or None to start Ray on this machine alone and stop it afterwards.
        library: the part of Ray that is used, which is imported too.
        options: of `ray.init`, for a Ray on this machine.

    Raises:
        BadInput: that part of Ray is not installed, or there is no cluster at `address`.
    """
    check_address(address or "")
    try:
        ray = import_module("ray")
        import_module(f"ray.{library}")
        from ray._common.usage import usage_lib
    except ImportError as error:
        raise BadInput(
            f'--ray needs ray.{library} ({error}): pip install "spotedit[ray]"'
        ) from error
    if ray.is_initialized():
        yield ray
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    start: dict[str, Any] = {"address": address}
    if address is None:
        usage_lib.set_usage_stats_enabled_via_env_var(False)  # nothing is sent to other hosts
        alone = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        start = alone | options
    try:
        ray.init(**start, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadInput(f"--ray {address or ''}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Raise `BadInput` if `address` is neither empty nor the address of a cluster."""
    if address not in ("", "auto") and not re.fullmatch(r"(ray://)?[^/\s]+:[0-9]+", address):
        raise BadInput(
            f'--ray {address}: expected an address, such as "auto" or HOST:PORT; put --ray last if '
            "it is to have none"
        )
