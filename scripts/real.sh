#!/bin/bash
# The proxy between real SDKs and a real llama-server.
# usage: REALBACKENDS=FOLDER scripts/real.sh
#
#   REALBACKENDS  folder with the recipes for engine and SDKs, which is not part of this repository:
#                 up.sh (starts a llama-server), test_clients.py (asks by SDK), captures/ (requests of SDKs) …
#   RB            where its README had the engine and the SDKs built [~/.cache/realbackends]
#   TOKENRING, LOADTEST   the binaries [target/release/…]
#   TOKENRING_CI=1        what cannot be checked is a failure, not a skip
#
# 1. SDKs of Python and Node: what passes on the engine itself passes through the proxy.
# 2. Left mid-stream, the engine's gauge of running requests returns to 0 within a second.
# 3. 600 streams on 16 connections: no answer but 2xx, each stream whole. llama-server closes
#    after a stream while it advertises keep-alive, which nginx turns into 502s (shown beside it).
# 4. Captured SDK requests, byte for byte.
#
# The engine has another key than the clients, so that a client's key that slipped through would
# be refused. Only the loopback is used: ports 18080, 18085 (engines) and 18090 (nginx).
# Exit: 0 all good, 1 something failed, 2 it could not run.
set -uo pipefail
cd "$(dirname "$0")/.."
recipes=${REALBACKENDS:-}
export RB=${RB:-$HOME/.cache/realbackends}
tokenring=${TOKENRING:-target/release/tokenring}
loadtest=${LOADTEST:-target/release/loadtest}
die() { echo "real: $*" >&2; exit 2; }
[ -n "$recipes" ] || die "set REALBACKENDS to the folder with the recipes (see the head of this script)"
[ -f "$recipes/up.sh" ] || die "no recipes in $recipes"
[ -x "$RB/build-llama/bin/llama-server" ] || die "no llama-server in $RB; run $recipes/build_llama_server.sh"
[ -x "$tokenring" ] || die "no $tokenring; run cargo build --release"
for port in 18080 18085 18090; do
    if (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; then die "port $port is taken"; fi
done

work=$(mktemp -d)
declare -A running=()
failed=0
skipped=0
end() { # PID of one of ours; llama-server sometimes needs both signals
    unset "running[$1]"
    kill "$1" 2>/dev/null
    for _ in $(seq 30); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$1" 2>/dev/null
}
finish() { for pid in "${!running[@]}"; do end "$pid"; done; rm -rf "$work"; }
trap finish EXIT
trap 'exit 130' INT TERM
title() { echo; echo "== $*"; }
good() { echo "ok    $*"; }
bad() { echo "FAIL  $*"; failed=$((failed + 1)); }
skip() {
    if [ "${TOKENRING_CI:-}" = 1 ]; then bad "skipped: $*"; else echo "skip  $*"; skipped=$((skipped + 1)); fi
}
engine() { # KIND PORT; leaves its process id in $started
    started=$("$recipes/up.sh" "$1" "$2") || die "the engine '$1' does not start; see $RB/logs"
    running[$started]=1
    echo "$1: llama-server $started on port $2"
}

title "engines and proxy"
engine tiny 18080
tiny=$started
engine slow 18085
slow=$started
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/tokenring.toml" <<TOML
[process]
drain = "2s"

[[listener]]
name = "main"
bind = "127.0.0.1:$port"

[[key]]
name = "sdk"
key = "sk-of-the-client"

# wrk's script has the engine's key in it.
[[key]]
name = "wrk"
key = "sk-test"

[[upstream]]
name = "tiny"
url = "http://127.0.0.1:18080"
auth = { type = "bearer", token = "sk-test" }

[[upstream]]
name = "slow"
url = "http://127.0.0.1:18085"
auth = { type = "bearer", token = "sk-test" }
TOML
"$tokenring" serve -c "$work/tokenring.toml" >"$work/proxy.log" 2>&1 </dev/null &
proxy=$!
running[$proxy]=1
for _ in $(seq 200); do
    curl -sf -o /dev/null "http://127.0.0.1:$port/health" && break
    kill -0 "$proxy" 2>/dev/null || { cat "$work/proxy.log" >&2; die "the proxy ended"; }
    sleep 0.05
done
cat "$work/proxy.log"

# Prints a table of two runs and judges: what is ok directly must be ok through the proxy.
# usage: compare DIRECT PROXIED; both files hold lines "case | ok|FAIL | …"
compare() {
    awk -F ' *[|] *' '
        { sub(/ +$/, "", $2) }
        NR == FNR { if (NF > 2) { direct[$1] = $2; order[n++] = $1 }; next }
        NF > 2 { proxied[$1] = $2; said[$1] = $4 }
        END {
            for (i = 0; i < n; i++) {
                name = order[i]; through = name in proxied ? proxied[name] : "missing"
                worse = direct[name] == "ok" && through != "ok"
                printf "%-36s direct %-5s proxied %-7s %s\n", name, direct[name], through, worse ? "WORSE: " said[name] : ""
                bad += worse
                both += direct[name] == "ok" && through == "ok"
            }
            printf "%d of %d pass both ways, %d worse\n", both, n, bad
            exit bad > 0 || both == 0
        }' "$1" "$2"
}

title "Python SDKs, the engine itself and through the proxy"
python=$RB/venv-clients/bin/python
if "$python" -c 'import openai, anthropic, langchain_openai' 2>/dev/null; then
    "$python" "$recipes/test_clients.py" http://127.0.0.1:18080 tiny >"$work/py-direct" 2>&1
    "$python" "$recipes/test_clients.py" "http://127.0.0.1:$port" tiny --key sk-of-the-client >"$work/py-proxied" 2>&1
    if compare "$work/py-direct" "$work/py-proxied"; then good "Python SDKs"; else bad "Python SDKs"; fi
else
    skip "no Python SDKs in $RB; run $recipes/install_clients.sh"
fi

title "Node SDKs, the engine itself and through the proxy"
if [ -f "$RB/npm/test_node.mjs" ] && command -v node >/dev/null; then
    node "$RB/npm/test_node.mjs" http://127.0.0.1:18080 tiny sk-test >"$work/js-direct" 2>&1
    node "$RB/npm/test_node.mjs" "http://127.0.0.1:$port" tiny sk-of-the-client >"$work/js-proxied" 2>&1
    if compare "$work/js-direct" "$work/js-proxied"; then good "Node SDKs"; else bad "Node SDKs"; fi
else
    skip "no Node SDKs in $RB; run $recipes/install_clients.sh"
fi

title "left mid-stream"
if python3 tests/real/abort.py --proxy "$port" --engine 18085 --key sk-of-the-client; then good "abort"; else bad "abort"; fi
end "$slow"

title "600 streams on 16 connections"
if [ -x "$loadtest" ]; then
    # What the machine's own slowness does to the figures does not matter here, hence the lag.
    if "$loadtest" run "http://127.0.0.1:$port" --model tiny --key sk-of-the-client --stream \
        --requests 600 --connections 16 --tokens 8 --strict --lag-max 10s; then
        good "600 whole streams"
    else
        bad "600 streams: exit code $?"
    fi
else
    skip "no $loadtest; run cargo build --release --workspace"
fi

title "the same with wrk"
if command -v wrk >/dev/null; then
    end "$tiny"
    count=0
    broken=0
    # Five seconds each, on an engine of its own on port 18080; a slow machine needs more of them.
    for _ in 1 2 3 4 5; do
        said=$("$recipes/proof_keepalive.sh" "$port")
        echo "tokenring $said"
        case $said in *Non-2xx* | *Socket*) broken=1 ;; esac
        count=$((count + $(sed -n 's/.*[^0-9]\([0-9]\+\) requests in.*/\1/p' <<<"${said:-: 0 requests in}")))
        [ "$count" -lt 600 ] || break
    done
    if [ $broken = 1 ]; then
        bad "wrk: answers other than 2xx, or broken connections"
    elif [ $count -lt 600 ]; then
        bad "wrk: only $count streams"
    else
        good "wrk: $count streams, no answer but 2xx"
    fi
    if [ -x /usr/sbin/nginx ]; then
        echo "for comparison:"
        "$recipes/proof_keepalive.sh"
    fi
else
    skip "wrk is not installed"
fi

title "captured requests, byte for byte"
if python3 tests/real/replay.py --proxy "$tokenring" "$recipes/captures/py.jsonl"; then good "replay"; else bad "replay"; fi

title "the proxy's own end"
unset "running[$proxy]"
kill -TERM "$proxy"
if wait "$proxy"; then good "exit code 0"; else bad "exit code $?"; fi
tail -n 3 "$work/proxy.log"
if grep -qi panic "$work/proxy.log"; then bad "a panic in the log"; fi

title "$failed failed, $skipped skipped"
[ "$failed" = 0 ]
