"""The file of `--config`. Its names are those of options, and its values become their defaults.

Names at the top hold for every command that has the option. A table with the name of a command
holds for that command alone, and overrides the top.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tyro
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ..editor.errors import BadInput
from ..options.config import SpotEditConfig
from ..options.file import SettingsError, check_names, config_arguments, read_settings
from .options import ConfigOptions, FileOptions

Commands = Mapping[str, type]
Table = dict[str, Any]

_CONFIG_FIELDS = {field.name for field in fields(SpotEditConfig)}
_NOT_IN_FILES = {field.name for field in fields(FileOptions)}
_SWITCH = {"True", "False"}  # the choices of an option that is on or off


def file_defaults(commands: Commands, command: str, path: Path) -> Any:
    """Return the options dataclass of `command` with the file's values as its defaults.

    A required option that the file does not give is `tyro.MISSING`.

    Raises:
        BadInput: the file cannot be read, a name is unknown, or a value is wrong.
    """
    try:
        shared, own = read_tables(commands, path)
        values = shared | own.get(command, {})
        values |= config_arguments(config_fields(values), path)
        return _filled(commands[command], values, path)
    except SettingsError as error:
        raise BadInput(str(error)) from error


def config_fields(values: Mapping[str, Any]) -> Table:
    """Return those of the values that are fields of `SpotEditConfig`."""
    return {name: value for name, value in values.items() if name in _CONFIG_FIELDS}


def read_tables(commands: Commands, path: Path) -> tuple[Table, dict[str, Table]]:
    """Return the values at the top of the file, and those in the table of each command.

    Raises:
        SettingsError: the file cannot be read, or no command has an option of that name.
    """
    shared = read_settings(path)
    own = {name: shared.pop(name) for name in commands if isinstance(shared.get(name), dict)}
    options = {name: _options(dataclass) for name, dataclass in commands.items()}
    check_names(shared, {*commands, *chain.from_iterable(options.values())}, path)
    for command, table in own.items():
        check_names(table, options[command], f"{path}: [{command}]")
    return shared, own


def _options(dataclass: type) -> dict[str, Any]:
    """Return the annotations of a command's options by name, without its positional arguments."""
    options: dict[str, Any] = {}
    for name, annotation in get_type_hints(dataclass, include_extras=True).items():
        nested = _nested(annotation)
        if nested is not None:
            options |= _options(nested)
        elif name not in _NOT_IN_FILES and not _is_positional(annotation):
            options[name] = annotation
    return options


def _nested(annotation: Any) -> type | None:
    """Return the dataclass that the annotation names, or None if it is that of an option."""
    inner = next(iter(get_args(annotation)), annotation)
    return inner if isinstance(inner, type) and is_dataclass(inner) else None


def _is_positional(annotation: Any) -> bool:
    return Positional in PrimitiveTypeInfo.make(annotation, set()).markers


def _filled(dataclass: type, values: Mapping[str, Any], path: Path) -> Any:
    """Return the dataclass with `values`, and with `tyro.MISSING` where it has no default."""
    arguments = {}
    annotations = get_type_hints(dataclass, include_extras=True)
    for field in fields(dataclass):
        name, annotation = field.name, annotations[field.name]
        nested, value = _nested(annotation), values.get(name)
        if nested is not None:
            arguments[name] = _filled(nested, values, path)
        elif value is not None and dataclass is ConfigOptions:
            arguments[name] = value  # `config_arguments` has checked it
        elif value is not None and not _is_positional(annotation):
            arguments[name] = _read(annotation, name, value, path)
        elif field.default is MISSING and field.default_factory is MISSING:
            arguments[name] = tyro.MISSING
    return dataclass(**arguments)


def _read(annotation: Any, name: str, value: Any, path: Path) -> Any:
    """Return the option's value, read by the rules of the command line.

    Raises:
        SettingsError: the command line would refuse it.
    """
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(annotation, set()))
    assert isinstance(spec, PrimitiveConstructorSpec)  # tyro has made an option of it
    choices = sorted(spec.choices or ())
    is_switch = set(choices) == _SWITCH
    expected = "true or false" if is_switch else " or ".join(choices) or spec.metavar
    values = value if isinstance(value, list) else [value]
    words = [str(item) for item in values]
    if (
        any(isinstance(item, bool) != is_switch for item in values)
        or (isinstance(value, list) and spec.nargs != "*")
        or (choices and words[0] not in choices)
    ):
        raise SettingsError(f"{path}: {name} is {value!r}; expected {expected}")
    try:
        return spec.instance_from_str(words)
    except ValueError as error:
        reason, *more = str(error).splitlines()
        hint = "" if more else f" ({reason})"  # tyro lists what it tried for each type
        raise SettingsError(f"{path}: {name} is {value!r}; expected {expected}{hint}") from None
