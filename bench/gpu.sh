#!/usr/bin/env bash
# Run the GPU tests and every benchmark on a CUDA machine, in one visit of nine minutes.
#
# The package bench/gpu does the work; its docstring says what comes back. --rehearse runs the same
# parts on a CPU at tiny shapes, and --parts NAME... runs only the parts named. These environment
# variables are the settings; folders are relative to the repository:
#   OUT       folder for gpu.tgz and summary.txt (default: build/gpu)
#   WHEELS    folder of wheels to install beside the present packages, on machines without an index
#             (what the machine lacks: diffusers; tyro, typeguard and docstring-parser)
#   PYTHON    interpreter that has PyTorch (default: python3)
#   COMMIT    commit that the rows name (default: that of the checkout)
#   DEADLINE  seconds from the start by which everything has ended (default: 540)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PYTHON=${PYTHON:-python3}
exec "$PYTHON" -m bench.gpu "$@"
