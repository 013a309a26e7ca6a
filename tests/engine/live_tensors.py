"""Find the tensors that are alive, and count their bytes."""

import gc

import torch


def live_tensors() -> list[torch.Tensor]:
    """Return all tensors that are alive; with the fixture `only_new_tensors`, its test's alone."""
    gc.collect()
    # `isinstance` would ask proxies for their class, and some objects fail at that.
    return [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]


def held_bytes() -> int:
    """Count the bytes of all live tensors on the CPU, once for tensors that share a storage."""
    storages = [x.untyped_storage() for x in live_tensors() if x.device.type == "cpu"]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
