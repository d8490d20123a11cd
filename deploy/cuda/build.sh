#!/usr/bin/env bash
# Builds `brigade-worker --features cuda` on Linux, also where there is no card, no driver and no CUDA toolkit: then the
# toolkit comes from PyPI, some 1.2 GB that stay in the build's own folder. A first build takes some 15 minutes of a
# processor's time.
#
#   CUDA_HOME          a toolkit to build with [default: that of the nvcc in PATH, /usr/local/cuda, or PyPI's]
#   CUDA_COMPUTE_CAP   what to build for, as 89 for 8.9 [default: the oldest card that is here, else 80]. Some kernels are
#                      machine code: a build runs on cards of the same first figure that are not older. So 80 is for A100,
#                      RTX 30 and RTX 40, 90 for Hopper, 100 and 120 for Blackwell
#   CARGO_TARGET_DIR   where builds go [default: target]; this one into its folder `cuda`
#
# `build.sh test [FILTER]...` runs the worker's tests of these names in the same way, which takes a driver. The program needs
# CUDA's libraries of the same first version number: it looks in the toolkit that it was built with, and before that in a
# folder `cuda` beside itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
mkdir -p "$target/cuda"
target=$(cd "$target/cuda" && pwd)

fail() {
  echo "error: $*" >&2
  exit 1
}
[ "$(uname -s)" = Linux ] || fail "CUDA builds are for Linux; on a Mac: cargo build --release -p brigade-worker --features metal"
command -v cc >/dev/null || fail "there is no C compiler: install gcc and g++"

# The toolkit of one release of CUDA 13.0, which drivers from 580 on run.
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-curand==10.4.0.35 nvidia-cublas==13.1.0.3)

# Puts the wheels' toolkit where this script expects it.
fetch_toolkit() {
  command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 ||
    fail "there is no CUDA toolkit, and no pip to fetch one: install python3-pip, or a toolkit and set CUDA_HOME"
  local parts=$target/toolkit.part root library
  rm -rf "$parts"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --only-binary :all: \
    --target "$parts" "${wheels[@]}"
  root=$parts/nvidia/cu13
  chmod +x "$root"/bin/* "$root"/nvvm/bin/*
  ln -s lib "$root/lib64"
  # Linkers look for names without a version.
  for library in cublas cublasLt cudart curand nvrtc; do
    ln -s "$(basename "$root/lib/lib$library.so".*)" "$root/lib/lib$library.so"
  done
  printf '%s\n' "${wheels[@]}" >"$parts/wheels"
  rm -rf "$target/toolkit"
  mv "$parts" "$target/toolkit"
}

if [ -n "${CUDA_HOME:-}" ]; then
  root=$CUDA_HOME
  [ -x "$root/bin/nvcc" ] || fail "CUDA_HOME=$root holds no bin/nvcc"
elif command -v nvcc >/dev/null; then
  root=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
elif [ -x /usr/local/cuda/bin/nvcc ]; then
  root=/usr/local/cuda
else
  if [ "$(cat "$target/toolkit/wheels" 2>/dev/null)" != "$(printf '%s\n' "${wheels[@]}")" ]; then
    echo "fetching CUDA's toolkit from PyPI"
    fetch_toolkit
  fi
  root=$target/toolkit/nvidia/cu13
fi
libraries=$root/lib64
[ -d "$libraries" ] || libraries=$root/lib

if [ -z "${CUDA_COMPUTE_CAP:-}" ]; then
  CUDA_COMPUTE_CAP=$({ nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true; } |
    tr -cd '0-9\n' | sort -n | head -n 1)
fi
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
export CUDA_HOME=$root CUDA_PATH=$root CUDA_ROOT=$root PATH=$root/bin:$PATH
echo "building for compute capability $CUDA_COMPUTE_CAP with $("$root/bin/nvcc" --version | grep release) in $root"

# libcuda.so.1 comes with a driver alone. What is linked with stands in for it: the same names, and nothing behind them.
# It lies in a folder that is in no program's search path.
stubs=$target/stubs
mkdir -p "$stubs"
cargo fetch --locked --quiet
sources=$(cargo metadata --locked --format-version 1 --features brigade-worker/cuda |
  grep -o '"manifest_path":"[^"]*/cudarc-[^/"]*/Cargo.toml"' | cut -d '"' -f 4)
[ -f "$sources" ] || fail "the crate cudarc, which names the driver's functions, was not found"
grep -oE 'fn cu[A-Z][A-Za-z0-9_]*' "$(dirname "$sources")/src/driver/sys/mod.rs" | sort -u |
  sed -E 's/fn (.*)/__attribute__((weak)) int \1(void) { return 34; }/' >"$stubs/cuda.c"
cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so" "$stubs/cuda.c"
export LIBRARY_PATH=$libraries:$stubs${LIBRARY_PATH:+:$LIBRARY_PATH}

export RUSTFLAGS="${RUSTFLAGS:-} -Clink-arg=-Wl,-rpath,\$ORIGIN/cuda -Clink-arg=-Wl,-rpath,$libraries"
export CARGO_TARGET_DIR=$target
if [ "${1:-}" = test ]; then
  shift
  exec cargo test --release --locked -p brigade-worker --features cuda -- "$@"
fi
cargo build --release --locked -p brigade-worker --features cuda

program=$target/release/brigade-worker
missing=$(ldd "$program" | grep 'not found' | grep -v 'libcuda\.so\.1' || true)
[ -z "$missing" ] || fail "$program would lack libraries:
$missing"
echo "built $program in $SECONDS s"
echo "It runs where a driver is (libcuda.so.1). To take it to another machine, take these along into a folder cuda beside it:"
ldd "$program" | awk '$3 ~ /lib(cublas|cublasLt|cudart|curand|nvrtc)\.so/ { print "  " $3 }'
