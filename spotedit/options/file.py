"""Read settings from a TOML or YAML file: plain values only, and each name once."""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .config import FUSION_NAMES, JUDGE_NAMES, SpotEditConfig
from .temporal import temporal_from

SUFFIXES = (".toml", ".yaml", ".yml")
MAX_BYTES = 2**14  # a settings file has a few lines
_FUNCTIONS = {"judge": JUDGE_NAMES, "fusion": FUSION_NAMES}  # may be functions, but in Python only
Table = dict[str, Any]


class SettingsError(ValueError):
    """Raised when a settings file cannot be read, or when a setting in it is wrong."""


def read_settings(path: Path, keep_dashes: bool = False) -> Table:
    """Return the settings and tables of a file by their names, with underscores for dashes.

    Values are text, numbers, truth values, None, and lists of these.

    Args:
        keep_dashes: keep the dashes in the names at the top, which are not those of options.

    Raises:
        SettingsError: the file cannot be read, is too large, is not TOML or YAML, has a name twice,
            or has a value of another kind.
    """
    parse = _parse_toml if path.suffix.lower() == ".toml" else _parse_yaml
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"{path}: expected a file whose name ends in {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SettingsError(f"{path}: too large; expected at most {MAX_BYTES} bytes")
        table = parse(content.decode())
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError:
        raise SettingsError(f"{path}: tables or lists are nested too deeply") from None
    except SettingsError:
        raise
    except ValueError as error:  # malformed text, a number that is too long, an impossible date
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path}: not readable ({reason})") from error
    if table is None:  # an empty YAML file
        return {}
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: expected names and values, as in threshold: 0.5")
    return _named(table, str(path), keep_dashes)


def _parse_toml(text: str) -> object:
    return tomllib.loads(text)


def _parse_yaml(text: str) -> object:
    import yaml

    try:
        if any(isinstance(token, yaml.AnchorToken | yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("anchors and aliases (& and *) are not supported; write values out")
        _refuse_repeated_names(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _refuse_repeated_names(node: Any) -> None:
    """Raise ValueError if a YAML mapping has a name twice, of which the loader takes the last."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        names = Counter(name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1:
                raise ValueError(f"{name} is given twice")
        for _, value in node.value:
            _refuse_repeated_names(value)


def _named(table: Mapping[object, Any], where: str, keep_dashes: bool = False) -> Table:
    """Return `table` with checked values, and with underscores for the dashes in its names."""
    named: Table = {}
    for key, value in table.items():
        if not isinstance(key, str):
            raise SettingsError(f"{where}: the name {key!r} is no text; put it in quotes")
        name = key if keep_dashes else key.replace("-", "_")
        if name in named:
            raise SettingsError(f"{where}: {name} is given twice")
        if isinstance(value, dict):
            named[name] = _named(value, f"{where}: [{key}]")
        elif _is_plain(value) or (isinstance(value, list) and all(map(_is_plain, value))):
            named[name] = value
        else:
            kind = type(value).__name__
            raise SettingsError(
                f"{where}: {key} is a {kind}; expected text, a number, true or false, or a list"
            )
    return named


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def check_names(table: Iterable[str], known: Iterable[str], where: object) -> None:
    """Raise `SettingsError` for the first name of `table` that is not one of `known`."""
    known = sorted(known)
    for name in table:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            expected = f"did you mean {nearest[0]}?" if nearest else f"expected {', '.join(known)}"
            raise SettingsError(f"{where}: unknown name {name}; {expected}")


def config_arguments(table: Mapping[str, Any], where: object) -> Table:
    """Return fields of `SpotEditConfig` from a file as its keyword arguments.

    Args:
        table: values by the names of fields. `temporal` is text such as "TaylorSeer(interval=3)",
            or a table of the `method` and its arguments.
        where: the file, or the part of it that has the values, for messages.

    Raises:
        SettingsError: a value is out of range.
    """
    arguments = dict(table)
    for name, choices in _FUNCTIONS.items():
        value = arguments.get(name)
        if value is not None and value not in choices:
            raise SettingsError(
                f"{where}: {name} is {value!r}; expected one of {', '.join(choices)} "
                "(a function of your own needs Python)"
            )
    if "temporal" in arguments:
        try:
            arguments["temporal"] = temporal_from(arguments["temporal"])
        except ValueError as error:
            raise SettingsError(f"{where}: temporal: {error}") from error
    try:
        SpotEditConfig(**arguments)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from error
    return arguments
