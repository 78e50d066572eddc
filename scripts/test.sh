#!/usr/bin/env bash
# Set up what the tests need, then pass them: lint, types, and every test that needs no GPU.
#
#   bash scripts/test.sh               what every change must pass; a few minutes
#   bash scripts/test.sh --all         also what is marked slow: whole sweeps instead of a tenth
#   bash scripts/test.sh tests/house   further arguments go to pytest
#
# Needs Python >= 3.11 and, the first time, a network. It makes .venv here (or $VENV), installs
# polytool with its test extra, and fetches the real models into the user's cache directory.
set -u
cd "$(dirname "$0")/.." || exit 1
. scripts/venv.sh

selection="not gpu and not slow"
if [ "${1:-}" = --all ]; then
    selection="not gpu"
    shift
elif [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 0
fi

venv test
echo "== fetching the models that tests run on"
"$python" scripts/fetch_models.py >/dev/null || exit 1

failed=
step() {
    local label=$1
    shift
    echo "== $label"
    "$@" || failed="$failed $label"
}
step "lint" "$python" -m ruff check .
step "format" "$python" -m ruff format --check --quiet .
step "types" "$python" scripts/typecheck.py
echo "== tests ($selection)"
# One thread a worker: two workers share the machine, and thread pools that spin only slow it down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
"$python" -m pytest -n 2 --quiet -m "$selection" "$@" || failed="$failed pytest"

[ -z "$failed" ] || die "failed:$failed"
