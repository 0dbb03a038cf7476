#!/bin/sh
# Builds tokenring from what a run of it teaches the compiler (profile-guided optimization), as a release for
# many machines should be built: laid out in one piece, the way that a request usually goes costs a fifth fewer
# instructions (1 KB over plain HTTP/1.1, by callgrind) and about a tenth less CPU, the kernel's part included.
#
# usage: scripts/pgo.sh [FILE]      where to put the binary; target/pgo/tokenring, without more
#
# On x86-64 it is for processors with AVX2 and BMI2 (x86-64-v3: 2013 and later, whatever drives a GPU has them), which
# costs two or three hundredths less again. It says so in its notes: the loader refuses an older processor with a word.
# CPU=x86-64 builds for all of them.
#
#   1. builds tokenring and loadtest with counters
#   2. runs them: chat of 1 KB and 100 KB, plain and streamed, over plain HTTP/1.1 and, through a second tokenring,
#      over TLS with HTTP/1.1 and HTTP/2 - which is both the server's side and the client's
#   3. builds tokenring with the counts
#
# Needs openssl (a certificate for a minute), nm and ld.bfd (binutils), and llvm-profdata of rustc's LLVM or newer:
# `rustup component add llvm-tools`, or Debian's llvm-NN. Ports from PORT on (28080) must be free. Takes two release
# builds.
set -eu
cd "$(dirname "$0")/.."
out=${1:-target/pgo/tokenring}
port=${PORT:-28080}
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
work=$PWD/target/pgo
counts=$work/counts

need() { command -v "$1" >/dev/null || { echo "$1 is missing; install it with: apt-get install $2" >&2; exit 2; }; }
need nm binutils
need ld.bfd binutils
need openssl openssl
merge=
for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" "llvm-profdata-$llvm" llvm-profdata; do
    if command -v "$tool" >/dev/null; then merge=$tool; break; fi
done
if [ -z "$merge" ]; then
    echo "llvm-profdata is missing; install it with: rustup component add llvm-tools, or apt-get install llvm-$llvm" >&2
    exit 2
fi

case $host in
    x86_64-*) cpu=${CPU-x86-64-v3} ;;
    *) cpu=${CPU-} ;;
esac
machine=${cpu:+-Ctarget-cpu=$cpu}
# rustc's own linker knows no such note.
case $cpu in
    x86-64-v[234]) machine="$machine -Clink-arg=-fuse-ld=bfd -Clink-arg=-Wl,-z,$cpu" ;;
esac

# With a target named, build scripts and macros are built without the flags. Both builds name the same packages:
# others would mean other features of what they share, hence other names of functions, and counts of none of them.
build() {
    RUSTFLAGS="${RUSTFLAGS:-} $machine $1" cargo build --release --locked --workspace --bin tokenring --bin loadtest \
        --target "$host" --target-dir "$work/build"
}

echo "== build with counters"
rm -rf "$counts"
mkdir -p "$counts"
build "-Cprofile-generate=$counts"
programs=$work/build/$host/release

echo "== run"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=IP:127.0.0.1 -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
cat >"$work/tls.toml" <<CONFIG
[process]
cores = 1
[[listener]]
name = "tls"
bind = "127.0.0.1:$((port + 1))"
auth = "none"
tls = { cert = "$work/cert.pem", key = "$work/key.pem" }
[[upstream]]
name = "mock"
url = "http://127.0.0.1:$((port + 2))"
models = ["tls-http1", "tls-http2"]
CONFIG
cat >"$work/plain.toml" <<CONFIG
[process]
cores = 1
[[listener]]
name = "plain"
bind = "127.0.0.1:$port"
auth = "none"
[[upstream]]
name = "plain"
url = "http://127.0.0.1:$((port + 2))"
models = ["plain"]
[[upstream]]
name = "http1"
url = "https://127.0.0.1:$((port + 1))"
models = ["tls-http1"]
tls = { ca = "$work/cert.pem" }
[[upstream]]
name = "http2"
url = "https://127.0.0.1:$((port + 1))"
models = ["tls-http2"]
http2 = true
tls = { ca = "$work/cert.pem" }
CONFIG
running=
trap 'for each in $running; do kill "$each" 2>/dev/null || true; done' EXIT
# What the load generator does teaches nothing.
LLVM_PROFILE_FILE=/dev/null "$programs/loadtest" mock --port $((port + 2)) --interval 5ms >/dev/null 2>&1 &
mock=$!
LLVM_PROFILE_FILE=$counts/tls.profraw "$programs/tokenring" serve -c "$work/tls.toml" >"$work/tls.log" 2>&1 &
tls=$!
LLVM_PROFILE_FILE=$counts/plain.profraw "$programs/tokenring" serve -c "$work/plain.toml" >"$work/plain.log" 2>&1 &
plain=$!
running="$mock $tls $plain"
load() {
    LLVM_PROFILE_FILE=/dev/null "$programs/loadtest" run -q --strict --lag-max 10s --tokens 64 "$@" \
        "http://127.0.0.1:$port" >"$work/load.log" 2>&1
}
tries=0
until load --model tls-http2 -n 1 --connections 1; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { cat "$work"/*.log >&2; exit 1; }
    sleep 0.1
done
for model in plain tls-http1 tls-http2; do
    for kind in "--prompt-bytes 800" "--prompt-bytes 100000" "--stream"; do
        load --model $model --duration 4s --connections 64 $kind || { cat "$work"/*.log >&2; exit 1; }
    done
done
# They write their counts when they end.
kill -TERM "$plain" "$tls"
wait "$plain" "$tls"

echo "== build with the counts"
"$merge" merge -o "$work/tokenring.profdata" "$counts"/tls.profraw "$counts"/plain.profraw
build "-Cprofile-use=$work/tokenring.profdata"
# Counts of functions by other names are ignored without a word, and the binary would be a plain one. Every request
# goes through this function.
of_requests=$(nm "$programs/tokenring" | grep -o '[^ ]*9tokenring5proxy8exchange3run[^ ]*' | head -n 1)
if ! "$merge" show --function="$of_requests" "$work/tokenring.profdata" | grep -q '^Functions shown: [1-9]'; then
    echo "the counts know no function ${of_requests:-proxy::exchange::run}: both builds must give it the same name" >&2
    exit 1
fi
mkdir -p "$(dirname "$out")"
cp "$programs/tokenring" "$out"
echo "== $out: $("$out" --version)"
