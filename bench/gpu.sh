#!/usr/bin/env bash
# GPU tests and every benchmark on a CUDA machine, in at most ten minutes: bench/gpu.sh
#
# Settings, from the environment (folders relative to the repository):
#   OUT      folder for the rows, and for each part's output in logs/ (default: bench/results/gpu)
#   WHEELS   folder of wheels to put beside the installed packages, for machines without an index
#   PYTHON   interpreter that has PyTorch (default: python3)
#   COMMIT   what the rows name as their commit where this is no git checkout
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
OUT=${OUT:-bench/results/gpu}
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "bench/gpu.sh: no CUDA device that PyTorch can use here; nothing was run" >&2
    exit 1
fi
mkdir -p "$OUT/logs" || exit 1
failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$OUT/logs/$name.log" 2>&1 || status=$?
    echo "$name: exit $status after $((SECONDS - start)) s"
    if ((status)); then
        failed+=("$name (exit $status)")
        tail -n 15 "$OUT/logs/$name.log"
    fi
}

if [[ -n ${WHEELS:-} ]]; then
    packages=$(mktemp -d)
    trap 'rm -rf "$packages"' EXIT
    part wheels 50 "$PYTHON" -m pip install --no-index --no-deps --target "$packages" \
        "$WHEELS"/*.whl
    PYTHONPATH="$PYTHONPATH:$packages"
fi

bench=("$PYTHON" -m)
cuda=(--device cuda --out "$OUT")
part tests 110 "$PYTHON" -m pytest -m gpu -q tests
part kernels 130 "${bench[@]}" bench "${cuda[@]}" --seconds 95
if command -v compute-sanitizer >/dev/null; then
    # without PyTorch's pool every tensor is an allocation of its own, whose ends are guarded
    part memcheck 50 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 \
        "$PYTHON" -m bench --device cuda --check --shapes odd
else
    echo "memcheck: compute-sanitizer is not present"
fi
part pipeline 180 "${bench[@]}" bench.pipeline "${cuda[@]}"
part speed 50 "${bench[@]}" bench.speed "${cuda[@]}" --dtype bfloat16 --sizes 256 512
part quality 40 "${bench[@]}" bench.quality "${cuda[@]}" --scenes 4 --variants default \
    --work "$OUT/logs/quality"
part convergence 30 "${bench[@]}" bench.convergence "${cuda[@]}" --scenes 4

if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all parts passed; rows are in $OUT"
