"""Start `spotedit app` as a user does, in a process of its own."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 120  # to load the model and to open the page
MAX_SECONDS_TO_END = 60


@contextmanager
def running_app(log: Path, *options: str) -> Iterator[str]:
    """Yield the address of a page with the tiny editor; what the program prints goes to `log`.

    In the end the program is asked to end, as a service manager does, and must leave no picture but
    Gradio's copies of the samples.
    """
    command = [sys.executable, "-m", "spotedit.cli", "app", "--model", "tiny", *options]
    folder = log.parent / "temporary"
    folder.mkdir()
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        "TMPDIR": str(folder),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=output, text=True
        )
        timer = threading.Timer(MAX_SECONDS, process.kill)
        timer.start()
        try:
            printed = ""
            for line in process.stdout:
                printed += line
                match = re.search(r"open (http://\S+/) in a browser", line)
                if match:
                    break
            else:
                raise AssertionError(f"the app ended: {printed}{log.read_text()}")
            timer.cancel()
            yield match[1]
            process.terminate()
            process.wait(MAX_SECONDS_TO_END)
            left = [path.name for path in folder.rglob("*.*") if path.is_file()]
            assert [name for name in left if not name.startswith("sample-")] == []
        finally:
            timer.cancel()
            process.kill()
            process.wait()
