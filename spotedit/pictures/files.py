"""Files out: a file is written whole or not at all, and what took long to make is not lost."""

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROBE_BYTES = 4096


class OutputError(ValueError):
    """A file cannot be written where it was asked for."""


def try_writing(path: Path) -> None:
    """Write a few bytes beside `path` and remove them; raises `OSError` where that fails."""
    probe = _beside(path)
    try:
        probe.touch(exist_ok=False)
        probe.write_bytes(bytes(_PROBE_BYTES))  # an empty file can be made on a full disk
    finally:
        with suppress(OSError):
            probe.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it; one that is there already is fine.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: the folder cannot be made ({reason(error)}); choose another"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name in `path`'s folder that becomes `path` if the block ends without exception.

    The temporary file is gone afterwards, also after Ctrl-C. It has the suffix of `path`.

    Raises:
        OutputError: the block or the renaming raised an `OSError`.
    """
    temporary = _beside(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({reason(error)}); make room there or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OutputError: see `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_somewhere(path: Path, write: Callable[[Path], object]) -> str | None:
    """Write what took long to make; where `path` cannot be written, write it elsewhere.

    The current folder, the home folder and the system's folder for temporary files are tried in
    turn, with a name that no file has yet.

    Args:
        write: writes the file that it is given. What it raises becomes part of the result.

    Returns:
        None if the file is at `path`; else a line with what is wrong and where the file is.
    """
    try:
        write(path)
    except Exception as error:  # encoders raise what they like
        problem = str(error) if isinstance(error, OutputError) else f"{path}: {error}"
    else:
        return None
    name = f"{path.stem}-{secrets.token_hex(4)}{path.suffix}"
    for folder in (Path.cwd, Path.home, tempfile.gettempdir):
        try:
            other = Path(folder()) / name
            write(other)
        except Exception:  # also where there is no such folder
            continue
        return f"{problem}. It was written to {other} instead"
    return f"{problem}. It could not be written anywhere else either, and is lost"


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")


def reason(error: OSError) -> str:
    """Why the system refused; some libraries raise an `OSError` without its number."""
    return error.strerror or str(error)
