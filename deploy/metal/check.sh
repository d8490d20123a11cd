#!/usr/bin/env bash
# Type-checks `brigade-worker --features metal` for a Mac (aarch64-apple-darwin) on Debian or Ubuntu, without a Mac.
#
# The standard library is checked for that target from source (Debian's rust-web-src), and PyPI's ziglang brings a C
# compiler with Apple's headers for the crates that build C. Nothing is linked or run: it proves types, not behaviour.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=(rustc-web cargo-web rust-web-src)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "error: missing packages: run 'sudo apt-get install ${missing[*]}' first" >&2
    exit 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "${missing[@]}" >/dev/null
fi

target=${CARGO_TARGET_DIR:-$PWD/target}/metal
mkdir -p "$target"
if [ ! -x "$target/zig/bin/python" ]; then
  python3 -m venv "$target/zig"
  "$target/zig/bin/python" -m pip install --quiet --disable-pip-version-check ziglang==0.15.2
fi

# rustc and cc-rs pass Apple clang's spelling of the target; zig has its own.
cat >"$target/cc" <<WRAPPER
#!/usr/bin/env bash
arguments=()
while [ \$# -gt 0 ]; do
  case "\$1" in
    --target=*|-mmacosx-version-min=*) ;;
    -arch) shift ;;
    *) arguments+=("\$1") ;;
  esac
  shift
done
exec "$target/zig/bin/python" -m ziglang cc -target aarch64-macos "\${arguments[@]}"
WRAPPER
cat >"$target/ar" <<WRAPPER
#!/usr/bin/env bash
exec "$target/zig/bin/python" -m ziglang ar "\$@"
WRAPPER
chmod +x "$target/cc" "$target/ar"

env RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$target" CARGO_PROFILE_DEV_DEBUG=false RUSTFLAGS= \
  CC_aarch64_apple_darwin="$target/cc" AR_aarch64_apple_darwin="$target/ar" \
  /usr/bin/cargo check --locked -Zbuild-std=std,panic_abort --target aarch64-apple-darwin \
  -p brigade-worker --features metal
echo "the Metal build type-checks for aarch64-apple-darwin"
