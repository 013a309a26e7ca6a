#!/usr/bin/env bash
# GPU tests and every benchmark on a CUDA machine, in one visit of nine minutes: bench/gpu.sh
#
# The package bench/gpu does the work and says what comes back. With --rehearse it runs the same parts on a
# CPU, at tiny shapes; with --parts NAME... only those. Settings, from the environment (folders
# relative to the repository):
#   OUT       folder for gpu.tgz and summary.txt (default: build/gpu)
#   WHEELS    folder of wheels to put beside the installed packages, for machines without an index
#   PYTHON    interpreter that has PyTorch (default: python3)
#   COMMIT    what the rows name as their commit where this is no git checkout
#   DEADLINE  seconds from the start after which everything has ended (default: 540)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PYTHON=${PYTHON:-python3}
exec "$PYTHON" -m bench.gpu "$@"
