#!/bin/bash
# Runs the checks that the nginx+Lua proxy, which this one replaces, holds itself to.
# usage: scripts/seedtests.sh FILE     or SEEDTESTS=FILE scripts/seedtests.sh
#
# FILE is that script, nginx-llm-proxy.sh, which is not part of this repository. It is called with the port of the
# proxy, starts the two servers that it asks for itself, and exits with 0 when all its checks pass.
# TOKENRING is the binary [target/release/tokenring]. Needs curl and python3; uses ports 9091 and
# 9092 of the loopback, which the checks ask for. Exit: 0 all passed, 1 not, 2 it could not run.
set -euo pipefail
cd "$(dirname "$0")/.."
checks=${1:-${SEEDTESTS:-}}
tokenring=${TOKENRING:-target/release/tokenring}
[ -n "$checks" ] || { echo "seedtests: say where nginx-llm-proxy.sh lies: scripts/seedtests.sh FILE" >&2; exit 2; }
[ -f "$checks" ] || { echo "seedtests: no $checks" >&2; exit 2; }
[ -x "$tokenring" ] || { echo "seedtests: no $tokenring; build it or set TOKENRING" >&2; exit 2; }
for port in 9091 9092; do
    if (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; then
        echo "seedtests: port $port is taken" >&2; exit 2
    fi
done
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
work=$(mktemp -d)
cat >"$work/tokenring.toml" <<TOML
[process]
drain = "2s"

[[listener]]
name = "main"
bind = "127.0.0.1:$port"

[[key]]
name = "test"
key = "test-key-123"

[models."chat-model"]
backend = "127.0.0.1:9091"

[models."embed-model"]
backend = "127.0.0.1:9092"
TOML
"$tokenring" serve -c "$work/tokenring.toml" >"$work/log" 2>&1 </dev/null &
proxy=$!
trap 'kill "$proxy" 2>/dev/null || true; wait "$proxy" 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 100); do
    kill -0 "$proxy" 2>/dev/null || { echo "seedtests: the proxy ended:" >&2; cat "$work/log" >&2; exit 2; }
    curl -sf -o /dev/null "http://127.0.0.1:$port/health" && break
    sleep 0.05
done
if ! bash "$checks" "$port"; then
    echo "seedtests: the proxy said:" >&2
    cat "$work/log" >&2
    exit 1
fi
