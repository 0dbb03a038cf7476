#!/bin/sh
# Checks bans, licences and sources of every dependency against deny.toml.
set -eu
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null 2>&1; then
    echo "cargo-deny is missing; install it with: cargo install cargo-deny --locked" >&2
    exit 2
fi
exec cargo deny check bans licenses sources
