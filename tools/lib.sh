# What the scripts here share; sourced by them. Leaves the shell in the root of the repository.
# shellcheck shell=bash

set -euo pipefail
script=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

# One build serves both: the flags of every `swift build` and `swift test`.
# shellcheck disable=SC2034
build_flags=(-c release -Xswiftc -enable-testing)

fail() {
  printf '%s: %s\n' "$(basename "$script")" "$*" >&2
  exit 1
}

# The comment at the head of the calling script is its help.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$script"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo > /dev/null; then
    sudo "$@"
  else
    fail "this needs root: $*; mend: run it as root, or install sudo"
  fi
}

require_swift() {
  command -v swift > /dev/null || fail "no swift on the PATH; mend: install Swift 6.2 or later from swift.org"
}

# Installs those of the named Debian packages that are missing.
install_packages() {
  local missing=()
  for package in "$@"; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed \
      || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}"
  fi
}

# The libraries that Package.swift links, and the program by which SwiftPM finds them.
install_libraries() {
  local packages=(libzstd-dev libopenblas-dev liblmdb-dev libssl-dev)
  command -v pkg-config > /dev/null || packages+=(pkg-config)
  install_packages "${packages[@]}"
}

# Has `promtool` on the PATH, for the tests of the alerts. The package that it is of would start a service.
provide_promtool() {
  local place=$PWD/.build-promtool
  command -v promtool > /dev/null && return
  if [ ! -x "$place/usr/bin/promtool" ]; then
    echo "fetching promtool"
    mkdir -p "$place"
    (cd "$place" && as_root apt-get -qq update && apt-get -qq download prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb) \
      || { echo "promtool is not to be had: the tests of the alerts are left out"; return; }
  fi
  export PATH=$PATH:$place/usr/bin
}

# Makes .venv with the named Python packages and has `quantease` run its tokenizer helper there.
python_environment() {
  command -v python3 > /dev/null || install_packages python3
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || fail "$(python3 --version) is too old; mend: put Python 3.10 or later first on the PATH"
  python3 -c 'import ensurepip' 2> /dev/null || install_packages python3-venv
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install --quiet "$@"
  export QUANTEASE_PYTHON="$PWD/.venv/bin/python"
}

# Has OpenBLAS take the kernels that the program asks for at its start in what cannot ask by itself: tests, benchmarks.
use_best_kernels() {
  local kernels
  kernels=$("$1" inspect Tests/Fixtures/models/llama --json | sed -n 's/.*"kernels" : "OpenBLAS \([A-Za-z0-9_]*\).*/\1/p')
  [ -z "$kernels" ] || export OPENBLAS_CORETYPE="$kernels"
}
