#!/bin/sh
# Installs a built tokenring as a service of this machine, where there is no package for it:
#
#   sudo deploy/install.sh [target/release/tokenring]
#
# Run again it is an upgrade: the program and the unit are replaced, the config is left as it is, and
# a running service is restarted, which drains it. DESTDIR=… puts the files there and starts nothing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
program=${1:-$here/../target/release/tokenring}
to=${DESTDIR:-}
put() { install -D -m "$1" "$here/$2" "$to$3"; }

[ -x "$program" ] || { echo "no program at $program; build it with: cargo build --release" >&2; exit 1; }
# Not `install`: a program that runs cannot be written over, but replaced.
mkdir -p "$to/usr/bin"
cp "$program" "$to/usr/bin/tokenring.new"
chmod 755 "$to/usr/bin/tokenring.new"
mv "$to/usr/bin/tokenring.new" "$to/usr/bin/tokenring"
put 644 systemd/tokenring.service /etc/systemd/system/tokenring.service
put 644 systemd/sysusers.d/tokenring.conf /usr/lib/sysusers.d/tokenring.conf
put 644 systemd/tmpfiles.d/tokenring.conf /usr/lib/tmpfiles.d/tokenring.conf
[ ! -d /etc/logrotate.d ] || put 644 systemd/logrotate /etc/logrotate.d/tokenring
[ -e "$to/etc/tokenring/tokenring.toml" ] || put 640 tokenring.toml /etc/tokenring/tokenring.toml
[ -z "$to" ] || exit 0

# Type=notify-reload came with systemd 253.
version=$(systemctl --version | sed -n '1s/[^0-9]*\([0-9]*\).*/\1/p')
dropin=/etc/systemd/system/tokenring.service.d/before-253.conf
if [ "$version" -lt 253 ]; then put 644 systemd/before-253.conf "$dropin"; else rm -f "$dropin"; fi
systemd-sysusers tokenring.conf
systemd-tmpfiles --create tokenring.conf
systemctl daemon-reload
systemctl enable tokenring
systemctl restart tokenring
systemctl --no-pager --lines=10 status tokenring
