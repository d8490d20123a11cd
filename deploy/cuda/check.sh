#!/usr/bin/env bash
# Proves CUDA on this machine: builds `brigade-worker --features cuda` (see build.sh, whose settings count here, too), lets
# it compare what a card computes with the processor's results, runs the tests on the card, and measures decoding.
#
#   deploy/cuda/check.sh [DEVICE]      DEVICE: cuda:0 unless given
#
# MODEL names a GGUF file to check and measure with; the demo's small model unless given. Exits with 77, and says what was
# not run, where there is no card.
set -euo pipefail
cd "$(dirname "$0")/../.."
device=${1:-cuda:0}

./deploy/cuda/build.sh
target=${CARGO_TARGET_DIR:-$PWD/target}
target=$(cd "$target/cuda" && pwd)
worker=$target/release/brigade-worker

step() {
  printf '\n== %s (%s s)\n' "$1" "$SECONDS"
}

skip() {
  echo "skipped: comparing with the processor, the tests on a card, and the speed of decoding: $*"
  exit 77
}

step "devices"
if ! listed=$("$worker" devices 2>&1); then
  case $listed in
    # The program does not even start without the driver's library.
    *libcuda.so.1*) skip "there is no NVIDIA driver here (libcuda.so.1 is missing)" ;;
    *) echo "error: $listed" >&2 && exit 1 ;;
  esac
fi
printf '%s\n' "$listed"
grep -q "^$device " <<<"$listed" || skip "there is no $device here"

model=${MODEL:-$(deploy/fetch-model.sh)}

step "what the card computes against the processor's results"
"$worker" selftest --device "$device"
"$worker" selftest --device "$device" --model "$model"

step "tests on the card"
# Tests that take a device to compute on take this one.
BRIGADE_TEST_DEVICE=$device ./deploy/cuda/build.sh test candle:: device::

step "decoding"
"$worker" bench "$model" --device "$device" -p 512 -n 128 -d 0,4096
step "done"
