"""What all pictures of a batch share, as plain data that can be sent to another process."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from spotedit_kernels.select_tokens import Mode

from ..editor.photo import Detail, Keep
from ..editor.settings import EditorSettings
from ..options.config import changed_fields

UNFINISHED = ".unfinished"  # files are written there, and renamed into their place when whole


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How the pictures are edited, and the folder for the results.

    Attributes:
        editor: how the pipeline is loaded and called.
        out: absolute path of the folder.
        keep, detail: see `PhotoOptions`.
        mask_mode: see `Handle.set_mask`.
    """

    editor: EditorSettings
    out: Path
    keep: Keep = "original"
    detail: Detail = "model"
    mask_mode: Mode = "intersect"

    def record(self) -> dict[str, Any]:
        """Return the settings that decide what a picture looks like, as JSON has them."""
        settings = {
            "model": self.editor.model,
            "dtype": self.editor.dtype,
            "arguments": dict(self.editor.arguments),
            "config": changed_fields(self.editor.config),
            "keep": self.keep,
            "detail": self.detail,
            "mask_mode": self.mask_mode,
        }
        # equal to the settings of a row that is read back
        return json.loads(json.dumps(settings, default=str))

    def target(self, output: str) -> Path:
        """Return the path of an output."""
        return self.out / output

    def report(self, output: str) -> Path:
        """Return the path of an output's report."""
        return self.out / "reports" / f"{output}.json"

    def unfinished(self, output: str) -> Path:
        """Return the path at which an output is made. It has the same suffix."""
        name = hashlib.sha256(os.fsencode(output)).hexdigest()[:16]
        return self.out / UNFINISHED / f"{name}{PurePosixPath(output).suffix}"

    def relative(self, path: Path) -> str:
        """Return a path as rows have it: relative to `out`, with slashes, if that exists."""
        try:
            return Path(os.path.relpath(path, self.out)).as_posix()
        except ValueError:  # it is on another drive
            return path.as_posix()
