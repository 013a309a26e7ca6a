"""Views: objects of a subclass that share all attributes of the object they stand in for."""

import copyreg
from typing import Any


def subclass(base: Any, namespace: dict[str, Any], mixins: tuple[type, ...] = ()) -> Any:
    """Make a subclass of the same name whose copies and pickles are instances of `base`.

    Args:
        namespace: the methods of the subclass, and `__slots__` for what `view` sets.
        mixins: classes that come before `base`.
    """

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        make, arguments, state, *rest = base.__reduce_ex__(self, protocol)
        if make.__name__ == "__newobj__":  # pickle would insist on the subclass
            make, arguments = copyreg._reconstructor, (base, object, None)  # type: ignore[attr-defined]
        attributes = state[0] if isinstance(state, tuple) else state  # without our slots
        return make, tuple(base if x is type(self) else x for x in arguments), attributes, *rest

    named = {"__module__": base.__module__, "__doc__": base.__doc__, "__reduce_ex__": __reduce_ex__}
    return type(base.__name__, (*mixins, base), named | namespace)


def view(instance: Any, view_class: Any, **slots: Any) -> Any:
    """Make an object of `view_class`, a `subclass`, that shares all attributes of `instance`."""
    made = object.__new__(view_class)
    for name, value in {"__dict__": vars(instance), **slots}.items():
        object.__setattr__(made, name, value)
    return made
