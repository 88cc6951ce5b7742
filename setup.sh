#!/usr/bin/env bash
# Sets up .venv from the lock files: `./setup.sh runtime` or `./setup.sh dev` (make does it by itself).
# A second run finds its stamp and does nothing. It asks nothing, needs no root, no compiler, and no network but a package index.
set -euo pipefail
cd "$(dirname "$0")"

what=${1:-runtime}
case $what in runtime | dev) ;; *) echo "setup.sh: found \"$what\"; expected runtime or dev" >&2; exit 2 ;; esac

say() { printf '%s\n' "$*" >&2; }
stop() { say "make setup: $1"; shift; for line in "$@"; do say "    $line"; done; exit 1; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        command -v "$name" >/dev/null || continue
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$name"; return; }
    done
    return 1
}

python=$(find_python) || stop "no Python 3.11 or newer found (looked for ${PYTHON:-python3, python3.13, python3.12, python3.11})." \
    "Debian 12 and Ubuntu 24.04:  apt-get install python3 python3-venv" \
    "Elsewhere:                   make setup PYTHON=/path/to/python3.11"

mkdir -p .cache 2>/dev/null || stop "$PWD cannot be written by $(id -un)." "Clone the repository as the user who runs it."
{ exec 9>.cache/setup.lock; } 2>/dev/null || stop "$PWD/.cache cannot be written by $(id -un)." "It belongs to $(stat -c %U .cache): remove it, or run as that user."
flock 9 # two makes at once: the second waits, then finds the stamp

# The interpreter, and the files that say what is installed: when one changes, the stamp no longer fits.
interpreter="$("$python" -c 'import sys; print(sys.version.split()[0], sys.base_prefix)')"
lock_of() { if [ "$1" = runtime ]; then echo requirements.lock; else echo "requirements-$1.lock"; fi; }
fingerprint_of() { echo "$interpreter $(cat requirements-setup.lock "$(lock_of "$1")" pyproject.toml setup.sh | sha256sum | cut -c1-64) $PWD"; }
stamp=.venv/.set-up-$what
[ -x .venv/bin/perdure ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint_of "$what")" ] && exit 0

log=.cache/setup.log
: >"$log"
attempt() { "$@" >>"$log" 2>&1; }
failed() { say "$(tail -n 15 "$log")"; stop "$@" "All of its output: $log"; }

started=$(date +%s)
if [ -d .venv ] && [ "$(.venv/bin/python -c 'import sys; print(sys.version.split()[0], sys.base_prefix)' 2>/dev/null)" != "$interpreter" ]; then
    say "make setup: .venv was made by another Python; making it anew with $python ($interpreter)"
    rm -rf .venv
fi
if [ ! -x .venv/bin/pip ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || stop "$python has no venv module (Debian keeps it in a package of its own)." \
        "As root:  apt-get install python3-venv" \
        "Or name another interpreter:  make setup PYTHON=/path/to/python3.11"
    free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
    [ "$free_mb" -ge 1200 ] || stop "only $free_mb MB are free in $PWD; the environment needs about 700 MB, and as much again while it is unpacked."
    say "make setup: making .venv with $python ($interpreter)"
    attempt "$python" -m venv .venv || failed "$python -m venv .venv did not work."
fi

say "make setup: installing the locked packages ($what), each checked against its hash ..."
attempt .venv/bin/pip install --disable-pip-version-check --no-input --require-hashes --only-binary :all: -r requirements-setup.lock ||
    failed "pip could not install requirements-setup.lock." "Is a package index reachable? (pip's own settings, e.g. PIP_INDEX_URL, are honoured.)"

# uv takes seconds where pip takes more than a minute, but reads none of pip's settings: hand it the index, and fall back on pip.
index=$(.venv/bin/pip config get global.index-url 2>/dev/null || true)
index=${PIP_INDEX_URL:-$index}
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
# The same for certificates: those that pip is told to trust (a company's proxy has its own), and those of the system.
certificates=${PIP_CERT:-$(.venv/bin/pip config get global.cert 2>/dev/null || true)}
[ -z "$certificates" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificates}"
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}"
locked=(--require-hashes --only-binary :all: -r "$(lock_of "$what")")
attempt .venv/bin/uv pip install --python .venv/bin/python "${locked[@]}" ||
    { say "make setup: uv did not manage (see $log); trying pip, which is slower ..."
      attempt .venv/bin/pip install --disable-pip-version-check --no-input "${locked[@]}"; } ||
    failed "the locked packages could not be installed."
attempt .venv/bin/pip install --disable-pip-version-check --no-input --no-deps --no-build-isolation --no-index -e . ||
    failed "perdure itself could not be installed into .venv."

fingerprint_of "$what" >"$stamp"
fingerprint_of runtime >.venv/.set-up-runtime # requirements-dev.lock holds all that requirements.lock holds
say "make setup: done in $(($(date +%s) - started)) s"
