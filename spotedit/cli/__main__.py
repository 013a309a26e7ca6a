"""Run the program with `python -m spotedit.cli`."""

import sys

from . import main

sys.exit(main())
