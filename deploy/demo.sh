#!/usr/bin/env bash
# Shows Brigade on one machine: a 98 MB model answers across three workers of 64 MiB each, none of which could hold it.
#
#   deploy/demo.sh            ask one question, show memory and time per stage, end
#   deploy/demo.sh --serve    stay up at http://127.0.0.1:7480 until Ctrl-C
#
# Needs Rust, Python with pip, and a C compiler; builds what it runs and downloads the model (once, 92 MB compressed).
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  "" | --serve) ;;
  -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  *) echo "error: unknown argument '$1'; see deploy/demo.sh --help" >&2; exit 2 ;;
esac
for tool in cargo cc python3; do
  command -v "$tool" >/dev/null || { echo "error: $tool is missing: install Rust (rustup.rs), a C compiler and Python 3 with pip" >&2; exit 1; }
done

echo "building (a few minutes the first time)..."
cargo build --release --locked --workspace --bins
brigade=${CARGO_TARGET_DIR:-target}/release/brigade
model=$(deploy/fetch-model.sh)
cluster=("$brigade" up "$model" --workers 3 --memory 64MiB --threads 1)

if [ "${1:-}" = --serve ]; then
  exec "${cluster[@]}"
fi

log=$(mktemp)
"${cluster[@]}" --http 127.0.0.1:0 > >(tee "$log") &
up=$!
trap 'kill "$up" 2>/dev/null || true; wait "$up" 2>/dev/null || true; rm -f "$log"' EXIT

until url=$(grep -om1 'http://127\.0\.0\.1:[0-9]*' "$log"); do
  kill -0 "$up" 2>/dev/null || { echo "error: the cluster ended before it served" >&2; exit 1; }
  sleep 0.1
done

question="What is a bucket brigade? Answer in two sentences."
printf '\n> %s\n\n' "$question"
"$brigade" run --url "$url" --max-tokens 96 --temperature 0 --stats "$(basename "$model" .gguf)" "$question"
echo
"$brigade" status --url "$url"
