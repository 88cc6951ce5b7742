#!/usr/bin/env bash
# Sets up .cache/peers, the environment of the programs that Perdure is compared with: locked, with hashes, wheels only.
set -euo pipefail
cd "$(dirname "$0")/../../.."
lock=tests/crash/peers/requirements.lock
stamp=.cache/peers/.set-up
fingerprint="$(.venv/bin/python -c 'import sys; print(sys.version.split()[0])') $(sha256sum "$lock" | cut -c1-64)"
[ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ] && exit 0
echo "make crash-peers: installing DBOS, LangGraph and durabl into .cache/peers ..." >&2
rm -rf .cache/peers
mkdir -p .cache
.venv/bin/python -m venv .cache/peers
locked=(--require-hashes --only-binary :all: -r "$lock")
log=.cache/peers/setup.log
.venv/bin/uv pip install --quiet --python .cache/peers/bin/python "${locked[@]}" >"$log" 2>&1 ||
    .cache/peers/bin/pip install --quiet --disable-pip-version-check --no-input "${locked[@]}" >>"$log" 2>&1 ||
    { tail -n 5 "$log" >&2; echo "make crash-peers: the peers could not be installed (is a package index reachable?)" >&2; exit 1; }
echo "$fingerprint" >"$stamp"
