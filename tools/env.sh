#!/bin/sh
# Makes the virtual environment at $1 and installs the package with what this machine can use.
# Needs python3 (3.11 or newer) with venv; says which system package is missing where it cannot install it.
set -eu
venv=$1
python=${PYTHON3:-python3}

missing() {
    echo "missing: $1. Install it as root: apt-get install -y $2" >&2
    exit 1
}

command -v "$python" >/dev/null || missing "python3" "python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || missing "Python 3.11 or newer (found $("$python" -V))" "python3.11 python3.11-venv"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv; else missing "python3-venv" "python3-venv"; fi
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
