#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: builds, runs the whole test grid of the CUDA kernels on
# the GPU, memcheck and racecheck on small cases, then the benchmark; below nine minutes.
#
#     bench/gpu_check.sh [FOLDER]   # default gpu_check; gets report.json, report.md and the logs
#
# Needs nvcc, a C++17 compiler, compute-sanitizer, and a Python with PyTorch for CUDA and the extra
# [dev] (`pip install '.[dev]'`). Prepared without a GPU at hand: what fails here is to be reported.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_check}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
build=build/gpu_check
export PYTHONPATH=$PWD/python PYTHONUNBUFFERED=1 TBPTT_FAST_REQUIRE_GPU=1

stage() {
    printf '\n=== %4d s: %s\n' "$SECONDS" "$1"
}

stage "machine"
nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
if [ "$capability" = 90 ]; then
    capability=90a
fi

stage "build for $capability"
# Compilers that nobody has tried may warn, and the emulated device is not needed.
TBPTT_FAST_CUDA_ARCHITECTURES=$capability cmake --preset cuda -B "$build" -G Ninja \
    -DTBPTT_FAST_WERROR=OFF -DTBPTT_FAST_CUDA_EMULATED=OFF \
    -DPython_EXECUTABLE="$(command -v "$python")" > "$out/cmake.log" 2>&1 \
    || { tail -n 40 "$out/cmake.log"; exit 1; }
cmake --build "$build" > "$out/build.log" 2>&1 || { tail -n 60 "$out/build.log"; exit 1; }
"$python" -m tbptt_fast info | tee "$out/info.txt"

status=0
stage "tests on the GPU"
# A kernel that never ends shows in the log as a test that takes half a minute.
timeout -k 5 150 "$python" -m pytest -q -rs --color=no -o faulthandler_timeout=30 -m gpu \
    tests/test_cuda_*.py > "$out/pytest.log" 2>&1 \
    || { status=1; grep -E '^(FAILED|ERROR|SKIPPED)' "$out/pytest.log" || true; }
tail -n 1 "$out/pytest.log"

# Calls of CUDA that fail are not reported: PyTorch makes some to see what there is, and the kernels'
# ask whether a cluster fits; their other ones are checked.
lstm="masks_and_truncation_in_float32 or (test_cuda_bfloat16 and masks_and_truncation and both)"
images="test_cuda_convrecurrent and a_tape_can_be_used_again"
small=(tests/test_cuda_recurrent.py tests/test_cuda_bfloat16.py tests/test_cuda_convolution.py
    tests/test_cuda_bfloat16_convolution.py tests/test_cuda_convrecurrent.py -m gpu
    -k "(lstm and ($lstm)) or every_way_once or ($images)")
for tool in memcheck racecheck; do
    stage "compute-sanitizer $tool"
    if timeout -k 5 60 compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 \
        --target-processes all "$python" -m pytest -q -x --color=no "${small[@]}" \
        > "$out/$tool.log" 2>&1; then
        tail -n 1 "$out/$tool.log"
    else
        status=1
        echo "$tool failed or took longer than a minute:"
        tail -n 20 "$out/$tool.log"
    fi
done

stage "benchmark"
timeout -k 5 150 "$python" -m bench cuda --rounds 5 --threads 1 --peers torch --markdown \
    --json "$out/report.json" > "$out/report.md" 2> "$out/bench.log" \
    || { status=1; tail -n 20 "$out/bench.log"; }
cat "$out/report.md"

stage "done, with status $status; $out holds report.json, report.md and the logs"
exit "$status"
