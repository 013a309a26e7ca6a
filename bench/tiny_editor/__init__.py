"""Train the tiny editor.

`STARTED` is the time at which this package was imported. `--seconds` counts from it, since the
imports that follow take some seconds of the time limit.
"""

import time

STARTED = time.monotonic()
