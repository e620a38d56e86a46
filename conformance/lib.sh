# Sourced by the suites: where things are, the Python environment, the binary.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
shared=${CAUDAL_SHARED:-$root/../shared}
export PEERS_DIR=${PEERS_DIR:-$HOME/.cache/caudal-peers}
target=${CARGO_TARGET_DIR:-$root/target}

# python_of REQUIREMENTS ARGUMENT...: an environment with the packages of that file, made once for each version of it.
python_of() {
  local sum; sum=$(sha256sum "$1" | cut -c1-12)
  local venv=$PEERS_DIR/conformance-$sum
  if [ ! -e "$venv/.done" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv" && "$venv/bin/pip" install -q -r "$1" && touch "$venv/.done"
  fi
  "$venv/bin/python" "${@:2}"
}
python() { python_of "$here/requirements.txt" "$@"; }

# caudal_binary: builds the binary that is tested (CAUDAL_BIN: take that one) and prints its path.
caudal_binary() {
  if [ -n "${CAUDAL_BIN:-}" ]; then echo "$CAUDAL_BIN"; return; fi
  (cd "$root" && cargo build -q -p caudal) >&2
  echo "$target/debug/caudal"
}
