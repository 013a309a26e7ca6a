"""What a patch could leave behind on a pipeline and its components."""

from typing import Any

from torch import nn

HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
)


def traces(*components: Any) -> list[dict[str, Any]]:
    """Describe every module, and every component that is none, with what a patch could change.

    The descriptions of a clean pipeline and of one that was cleaned up are equal.
    """
    found = []
    for component in components:
        parts = component.modules() if isinstance(component, nn.Module) else [component]
        found += [_describe(part) for part in parts]
    return found


def _describe(part: Any) -> dict[str, Any]:
    names = set(vars(part))
    if not isinstance(part, nn.Module):  # a scheduler's private attributes change in every call
        names = {name for name in names if not name.startswith("_")}
    return {
        "class": type(part),
        "attributes": names,
        "call": type(part).__call__ if callable(part) else None,
        "forward": vars(part).get("forward"),
        "processor": id(getattr(part, "processor", None)),
        "hooks": [len(getattr(part, name, ())) for name in HOOKS],
    }
