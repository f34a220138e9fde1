# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The toolchain of the base image is the pinned one: rustup need not fetch another.
RUN rm rust-toolchain.toml
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin shoal \
 && install -D -m 755 target/release/shoal /out/shoal \
 && install -d -m 755 /out/data

FROM debian:bookworm-slim
# ca-certificates: for brokers and registries behind TLS.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/shoal /usr/local/bin/shoal
# A named volume mounted here takes this owner over, so no role ever needs root.
COPY --from=build --chown=10001:10001 /out/data /var/lib/shoal
USER 10001:10001
WORKDIR /var/lib/shoal
VOLUME /var/lib/shoal
# HTTP and gRPC; each role listens on both.
EXPOSE 8080 9090
# Whoever runs the image probes /readyz over HTTP; docker-compose.yml shows how without any tool in the image.
HEALTHCHECK NONE
STOPSIGNAL SIGTERM
ENTRYPOINT ["shoal"]
CMD ["--help"]
