"""Read the configuration from the file that the commands take with `--config`."""

import os
from pathlib import Path

from .cli.commands import COMMANDS
from .cli.file import config_fields, read_tables
from .options.config import SpotEditConfig
from .options.file import config_arguments


def load_config(path: str | os.PathLike[str]) -> SpotEditConfig:
    """Read a `SpotEditConfig` from a TOML or YAML file, such as that of `spotedit edit --config`.

    Args:
        path: the file. Its names are fields of `SpotEditConfig`, with underscores or dashes.
            Options of the commands, such as `steps`, and the tables of commands are left aside.
            `temporal` is text such as "TaylorSeer(interval=3)", or a table of the `method` and its
            arguments. A function for `judge` or `fusion` needs Python.

    Raises:
        ValueError: the file cannot be read, a name is unknown, or a value is out of range.
    """
    shared, _ = read_tables(COMMANDS, Path(path))
    return SpotEditConfig(**config_arguments(config_fields(shared), path))
