"""The settings that a benchmark compares with the stock pipeline, each under a name."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import spotedit

from ..options.config import SpotEditConfig
from ..options.file import SettingsError, check_names, config_arguments, read_settings
from ..options.temporal import TaylorSeer, TeaCache
from .edits import DENSE, SPOT

Variants = Mapping[str, SpotEditConfig]

_METHODS: tuple[type[TeaCache] | type[TaylorSeer], ...] = (TeaCache, TaylorSeer)
_RESERVED = (DENSE, "source")  # folders with other pictures
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # a name becomes the name of a folder


def read_variants(path: Path | None, base: SpotEditConfig) -> dict[str, SpotEditConfig]:
    """Return the configurations of a file by their names, in the file's order.

    Args:
        path: TOML or YAML file with a table for each name. A table gives the fields of
            `SpotEditConfig` in which its configuration differs from `base`. None stands for `base`
            alone, under the name "spot".

    Raises:
        SettingsError: the file cannot be read, a name cannot be that of a folder or is taken, a
            field is unknown, or a value is out of range.
    """
    if path is None:
        return {SPOT: base}
    variants: dict[str, SpotEditConfig] = {}
    for name, table in read_settings(path, keep_dashes=True).items():
        _check_name(name, variants, path)
        where = f"{path}: [{name}]"
        if not isinstance(table, dict):
            raise SettingsError(f"{where}: expected a table of settings, as in [fast]")
        check_names(table, (field.name for field in fields(SpotEditConfig)), where)
        arguments = config_arguments(table, where)
        try:
            variants[name] = replace(base, **arguments)
        except ValueError as error:  # the table and `base` exclude each other
            raise SettingsError(f"{where}: {error}") from error
    if not variants:
        raise SettingsError(f"{path}: no settings; expected a table for each, as in [fast]")
    return variants


def _check_name(name: str, variants: Variants, path: Path) -> None:
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{path}: [{name}]; expected a name of letters, digits, '-' and '_'")
    if name.lower() in (*_RESERVED, *(other.lower() for other in variants)):
        raise SettingsError(f"{path}: [{name}] is taken; expected another name")


def check_variants(pipe: Any, variants: Variants) -> None:
    """Raise ValueError, which names the variant, if `pipe` cannot be enabled with one of them."""
    for name, config in variants.items():
        try:
            spotedit.enable(pipe, config).disable()
        except ValueError as error:
            raise ValueError(f"the settings {name}: {error}") from error


def recorded(config: SpotEditConfig) -> dict[str, Any]:
    """Return the fields of a configuration as they are after a row was written and read back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def described(config: Mapping[str, Any]) -> str:
    """Return the fields of a recorded configuration that differ from the defaults, for people."""
    defaults = recorded(SpotEditConfig())
    changed = {name: value for name, value in config.items() if value != defaults.get(name)}
    shown = {name: json.dumps(value) for name, value in changed.items()}
    if "temporal" in shown:  # a record has the fields of the method, but not its name
        (method,) = (m for m in _METHODS if [f.name for f in fields(m)] == [*changed["temporal"]])
        shown["temporal"] = repr(method(**changed["temporal"]))
    return ", ".join(f"{name} = {text}" for name, text in shown.items()) or "the defaults"
