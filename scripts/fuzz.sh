#!/bin/sh
# Runs the fuzz targets under libFuzzer, so many seconds each, as many at a time as there are processors.
#
# usage: scripts/fuzz.sh [SECS [TARGET...]]      60 seconds of every target, without more
#
# The toolchain of the machine will do: coverage is LLVM's own pass and needs no nightly. A C++ compiler builds
# libFuzzer. What was learned is kept in fuzz/corpus and goes on next time; an input that fails is left in
# fuzz/artifacts, and the target's program, given that file, fails again. Exit: 1 when one failed.
set -eu
cd "$(dirname "$0")/../fuzz"
secs=${1:-60}
[ $# -gt 0 ] && shift
if [ $# -eq 0 ]; then
    set -- $(for file in fuzz_targets/*.rs; do basename "$file" .rs; done)
fi
host=$(rustc -vV | sed -n 's/^host: //p')
# The pass and its counters; asserts of debug builds; units small enough to be compiled side by side.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS="--cfg fuzzing $coverage -Cdebug-assertions -Ccodegen-units=16" cargo build --release --target "$host"
programs=${CARGO_TARGET_DIR:-target}/$host/release
mkdir -p artifacts
export programs secs
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} sh -c '
    mkdir -p "corpus/{}"
    if "$programs/{}" -max_total_time="$secs" -max_len=4096 -print_final_stats=1 \
        -artifact_prefix="artifacts/{}-" "corpus/{}" >"artifacts/{}.log" 2>&1
    then
        sed -n "s/^stat::number_of_executed_units: */ok    {}: inputs /p" "artifacts/{}.log"
    else
        echo "FAIL  {}: see fuzz/artifacts/{}.log"
        exit 1
    fi' || exit 1
