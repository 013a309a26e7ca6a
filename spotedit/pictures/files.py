"""Write files atomically, and elsewhere if the chosen place fails after a long computation."""

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROBE_BYTES = 4096
_KEPT_CHARACTERS = 50  # of a name; each takes up to 4 of 255 bytes


class OutputError(ValueError):
    """Raised when a file cannot be written to the given path."""


def try_writing(path: Path) -> None:
    """Write a few bytes to a file next to `path` and remove it.

    Raises:
        OSError: no file can be written there.
    """
    probe = _temporary_name(path)
    try:
        probe.touch(exist_ok=False)
        probe.write_bytes(bytes(_PROBE_BYTES))  # even a full disk takes an empty file
    finally:
        with suppress(OSError):
            probe.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and its parents. An existing folder is left as it is.

    Raises:
        OutputError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: the folder cannot be made ({describe_error(error)}); choose another"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the block a temporary path, and rename that file to `path` if the block succeeds.

    The temporary file lies in the same folder and has the same suffix. If the block fails, even by
    Ctrl-C, the temporary file is removed and `path` stays as it was.

    Raises:
        OutputError: the block or the renaming raised an `OSError`.
    """
    temporary = _temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({describe_error(error)}); make room there or choose "
            "another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically.

    Raises:
        OutputError: see `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_or_fall_back(path: Path, write: Callable[[Path], object]) -> str | None:
    """Write a file that took long to compute. If `path` cannot be written, try other folders.

    These are the current folder, the home folder and the system's folder for temporary files, in
    this order. The file gets a new name there.

    Args:
        write: writes the file at the path that it is given. It may raise anything.

    Returns:
        None if the file is at `path`. Otherwise a line that says what went wrong and where the file
        is.
    """
    try:
        write(path)
    except Exception as error:  # every encoder has its own exceptions
        problem = str(error) if isinstance(error, OutputError) else f"{path}: {error}"
    else:
        return None
    new_name = _new_name(path)
    for find_folder in (Path.cwd, Path.home, tempfile.gettempdir):
        try:
            other = Path(find_folder()) / new_name
            write(other)
        except Exception:  # the folder may not exist either
            continue
        return f"{problem}. It was written to {other} instead"
    return f"{problem}. It could not be written anywhere else either, and is lost"


def _temporary_name(path: Path) -> Path:
    """Return the path of a hidden file that does not exist yet, next to `path`."""
    return path.with_name(f".{_new_name(path)}")


def _new_name(path: Path) -> str:
    """Return a name that no file has yet, with the start of the name of `path`."""
    return f"{path.stem[:_KEPT_CHARACTERS]}-{secrets.token_hex(4)}{path.suffix}"


def describe_error(error: OSError) -> str:
    """Return why the system refused, or the whole message of libraries that do not set that."""
    return error.strerror or str(error)
