"""Count how often the host waits for the device, as far as a CPU can tell."""

from torch.utils._python_dispatch import TorchDispatchMode

# The operations that a device must finish before the host can go on.
SYNCHRONISING = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
)


class CountSynchronisations(TorchDispatchMode):
    """While this mode is active, `count` is the number of synchronising operations so far."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split(".")[0] in SYNCHRONISING:
            self.count += 1
        return func(*args, **(kwargs or {}))
