# The proxy as an image: one program, the four libraries it is linked with, the machine's roots.
#
#   docker build -t tokenring .
#   docker run --rm --read-only -p 4000:4000 -v ./tokenring.toml:/etc/tokenring/tokenring.toml:ro tokenring
#
# No shell, no package manager, nothing to write to: it runs as user 65532 with a read-only root.
# docs/deploy.md tells what the config in a container should say.

FROM rust:1.88-bookworm AS build
WORKDIR /src
COPY . .
# The source of what is built is this folder and Cargo.lock; the caches only save time.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --workspace \
    && mkdir /built \
    && cp target/release/tokenring target/release/loadtest /built/

# What the image holds, put together by hand: distroless images bring more than is needed here.
RUN set -eu; \
    mkdir -p /image/usr/bin /image/etc/ssl/certs /image/etc/tokenring; \
    strip --strip-debug -o /image/usr/bin/tokenring /built/tokenring; \
    # The libraries and the loader, at the paths under which they are looked for.
    ldd /image/usr/bin/tokenring | grep -o '/[^ ]*' | sort -u \
        | while read -r file; do mkdir -p "/image$(dirname "$file")"; cp -L "$file" "/image$file"; done; \
    # For tls.ca = "system"; otherwise Mozilla's roots are in the program.
    cp -L /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/; \
    echo 'tokenring:x:65532:65532::/:/sbin/nologin' > /image/etc/passwd; \
    echo 'tokenring:x:65532:' > /image/etc/group; \
    # It starts there, or the image is none.
    chroot /image /usr/bin/tokenring --version

# The simulated model servers, for deploy/compose.yaml: docker build --target loadtest .
FROM build AS loadtest-image
RUN strip --strip-debug -o /image/usr/bin/loadtest /built/loadtest \
    && chroot /image /usr/bin/loadtest --help >/dev/null

FROM scratch AS loadtest
COPY --from=loadtest-image /image /
USER 65532:65532
ENTRYPOINT ["/usr/bin/loadtest"]

FROM scratch AS tokenring
COPY --from=build /image /
USER 65532:65532
EXPOSE 4000 9000
# Drain: process.drain (30 s) is longer than the 10 s that `docker stop` waits; give it -t 40.
STOPSIGNAL SIGTERM
# Asks GET /ready at the config's [admin] address: unhealthy while it drains, and while no server
# could answer. Without [admin] it fails; run with --no-healthcheck then.
HEALTHCHECK --interval=10s --timeout=8s --start-period=15s --retries=3 \
    CMD ["/usr/bin/tokenring", "check", "--live", "-c", "/etc/tokenring/tokenring.toml"]
ENTRYPOINT ["/usr/bin/tokenring"]
CMD ["serve", "-c", "/etc/tokenring/tokenring.toml"]
