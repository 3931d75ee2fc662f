#!/usr/bin/env bash
# What only a GPU can say, in under ten minutes: the kernels' numbers, and the study's headline with five seeds.
#
#     benchmarks/gpu.sh OUT                  # on a machine with a GPU
#     benchmarks/gpu.sh OUT --cpu --quick    # to see that it works: a toy size, kernels interpreted, two short runs
#
# PYTHON (default .venv/bin/python) has the package with its [test] extra. SEEKR_SMOLLM2 (default .venv/smollm2, of
# `make smollm2`) is the model and SEEKR_SHARED (default ../shared) the folder of data; a machine that reaches no network
# gets both copied. Runs go on where they were broken off; OUT then has row_kl.json, the tables and the raw scores.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { echo "usage: benchmarks/gpu.sh OUT [--cpu] [--quick]" >&2; exit 2; }
[ $# -ge 1 ] || usage
case $1 in -*) usage ;; esac
out=$1
shift
cpu= quick=
for word in "$@"; do
    case $word in --cpu) cpu=1 ;; --quick) quick=1 ;; *) usage ;; esac
done
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out/tables"

if [ -n "$cpu" ]; then
    export CUDA_VISIBLE_DEVICES=
    "$python" benchmarks/row_kl_gpu.py --interpret --json > "$out/row_kl.json"
elif ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "error: torch sees no GPU here; add --cpu to try the script without one" >&2
    exit 2
else
    "$python" benchmarks/row_kl_gpu.py --json > "$out/row_kl.json"
fi
echo "kernels: $out/row_kl.json"

stage=headline_gpu parallel=5
[ -z "$quick" ] || stage=quick parallel=2
# Tables and raw scores are written beside the plan.
cp benchmarks/results/study/gpu_plan.yaml "$out/tables/plan.yaml"
"$python" benchmarks/study.py run "$out/tables/plan.yaml" --runs "$out/runs" --stage "$stage" --parallel "$parallel"
echo "tables: $out/tables"
