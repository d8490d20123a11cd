#!/usr/bin/env bash
# Runs the CUDA build on a machine without a card, against a driver that only says what two cards would: what a worker lists,
# takes and refuses, and that --device all starts a worker for each. Nothing is computed. Needs build.sh to have run.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}/cuda
worker=$target/release/brigade-worker
[ -x "$worker" ] || { echo "error: there is no $worker: run deploy/cuda/build.sh first" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$scratch/libcuda.so.1" deploy/cuda/stand-in.c "$target/stubs/cuda.c"
export LD_LIBRARY_PATH=$scratch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Runs a command, whatever becomes of it, and wants these words of what it says.
expect() {
  local words=$1 said
  shift
  said=$("$@" 2>&1) || true
  grep -qF -- "$words" <<<"$said" || { printf 'error: `%s` does not say "%s" but:\n%s\n' "$*" "$words" "$said" >&2; exit 1; }
  echo "ok: $words"
}

token="bg1-$(printf '0%.0s' {1..64})-$(printf '0%.0s' {1..32})"
join=("$worker" join 127.0.0.1:9 --token "$token" --name box --state "$scratch/state" --models "$scratch")
expect "cuda:1   Stand-in 1: 23.0 GiB of 24.0 GiB free; a worker takes 21.8 GiB" "$worker" devices
expect '"device":"cuda:0","name":"Stand-in 0","memory_bytes":25769803776' "$worker" devices --json
expect "cuda:0 is Stand-in 0: 20.0 GiB of 24.0 GiB are free, and a worker takes 18.8 GiB" "$worker" doctor
expect "--memory 30.0 GiB is more than cuda:0 has: 24.0 GiB, of which 20.0 GiB are free" \
  "${join[@]}" --device cuda:0 --memory 30GiB
expect "--memory 22.0 GiB is more than cuda:0 can give now: 20.0 GiB of 24.0 GiB are free" \
  timeout 2 "${join[@]}" --device cuda:0 --memory 22GiB
expect "cuda:5 cannot be used: there is cuda:0, cuda:1" "${join[@]}" --device cuda:5
expect "computing on cuda:0: there is cuda:0, cuda:1" timeout 2 "${join[@]}" --device auto
expect "[box-cuda1] " timeout 3 "${join[@]}" --device all
echo "the CUDA build does what it should with two cards that only say what they are"
