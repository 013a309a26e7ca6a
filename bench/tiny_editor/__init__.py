"""Training of the tiny editor. `STARTED` is the clock at this package's import.

`--seconds` counts from it, since the imports that follow take seconds of a time limit.
"""

import time

STARTED = time.monotonic()
