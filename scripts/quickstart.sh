#!/usr/bin/env bash
# The main job in one command: a real OCR model on two engines, and whether they agree.
#
#   bash scripts/quickstart.sh
#
# Needs Python >= 3.11 and a network. It makes .venv here (or $VENV), installs polytool with
# ONNX Runtime, fetches PP-OCRv4's recogniser (15 MB, kept in your cache directory), and runs it on
# the native engine and on ONNX Runtime, on the CPU. Run it again as often as you like.
set -u
cd "$(dirname "$0")/.." || exit 1
. scripts/venv.sh

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 0
fi

venv cpu
echo "== fetching the model"
model=$("$python" scripts/fetch_models.py --only ppocr-rec) || exit 1

shapes='x:[1,3,48,320]'
echo "== comparing the native engine with ONNX Runtime on one line of text, 48 x 320 pixels"
echo "\$ polytool run $model --native --onnxrt --input-shapes '$shapes'"
"$python" -m polytool run "$model" --native --onnxrt --input-shapes "$shapes"
code=$?

echo
echo "Next: source ${VENV}/bin/activate && polytool --help"
exit $code
