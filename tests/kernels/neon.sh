#!/usr/bin/env bash
# Runs the kernels' tests for 64-bit Arm on Debian or Ubuntu under qemu-user: on a processor with dot products of bytes,
# and on one without. Exits with 77, and says why, where that cannot be done.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
  echo "skipped: $*"
  exit 77
}

if [ "$(uname -sm)" != "Linux x86_64" ]; then
  skip "the emulation is set up for Linux on x86-64; here, 'cargo test -p brigade-kernel-tests' tests this processor"
fi

# Installs Debian packages that are missing.
install() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || skip "missing packages: run 'sudo apt-get install ${missing[*]}' first"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "${missing[@]}" >/dev/null ||
    skip "apt-get cannot install ${missing[*]}"
}
install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user

# The standard library for the other processor: rustup's, or compiled from Debian's source by Debian's compiler.
target=aarch64-unknown-linux-gnu
cargo=(cargo)
library=()
if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ] && ! timeout 120 rustup target add "$target"; then
  install rustc-web cargo-web rust-web-src
  cargo=(env RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS=
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/neon" /usr/bin/cargo)
  library=(-Zbuild-std=std,panic_unwind,test)
fi

# The tests on a processor that has these instructions and no others.
on() {
  local processor=$1 instructions=$2 output
  echo "emulating $processor: $instructions"
  output=$(env CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu $processor" \
    "${cargo[@]}" test --release --locked --quiet ${library[@]+"${library[@]}"} --target "$target" \
    -p brigade-kernel-tests -- --nocapture) || {
    printf '%s\n' "$output"
    exit 1
  }
  printf '%s\n' "$output"
  grep -qF "compared: $instructions" <<<"$output" || {
    echo "error: the emulated $processor has other instructions" >&2
    exit 1
  }
}
on cortex-a72 '[Portable, Neon(Neon(()))]'
on neoverse-n1 '[Portable, Neon(Neon(())), Dotprod(Dotprod(()))]'
echo "the kernels give the same bits on 64-bit Arm"
