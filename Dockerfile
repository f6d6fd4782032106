# syntax=docker/dockerfile:1

# Images of the server: `docker build --target cpu .` and `--target cuda .`, the latter for x86-64 alone. Both hold
# models/ at /models, run as the user 65532, and need no writable file system.

FROM rust:1.92-bookworm@sha256:e90e846de4124376164ddfbaab4b0774c7bdeef5e738866295e5a90a34a307a2 AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY samples samples
COPY src src
COPY fuzz fuzz
COPY loadtest loadtest
COPY testkit testkit
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin blockdrop && \
    strip --strip-debug -o /blockdrop target/release/blockdrop

FROM python:3.12.12-slim-bookworm@sha256:593bd06efe90efa80dc4eee3948be7c0fde4134606dd40d8dd8dbcade98e669c AS onnxruntime
COPY scripts/fetch-onnxruntime /
RUN --mount=type=cache,target=/root/.cache/pip \
    library="$(XDG_CACHE_HOME=/fetched PIP_CACHE_DIR=/root/.cache/pip /fetch-onnxruntime)" && \
    mkdir /onnxruntime && \
    cp "$library" /onnxruntime/libonnxruntime.so && \
    cp "${library%/*}/LICENSE" "${library%/*}/ThirdPartyNotices.txt" /onnxruntime

# The build for NVIDIA GPUs, which has to find its providers beside it.
FROM python:3.12.12-slim-bookworm@sha256:593bd06efe90efa80dc4eee3948be7c0fde4134606dd40d8dd8dbcade98e669c AS onnxruntime-cuda
COPY deploy/onnxruntime-cuda.txt /
RUN --mount=type=cache,target=/root/.cache/pip \
    pip download --no-deps --only-binary=:all: --require-hashes --requirement=/onnxruntime-cuda.txt --dest=/wheels && \
    python -m zipfile -e /wheels/*.whl /wheel && \
    mkdir /onnxruntime && \
    mv /wheel/onnxruntime/capi/libonnxruntime.so.* /onnxruntime/libonnxruntime.so && \
    mv /wheel/onnxruntime/capi/libonnxruntime_providers_cuda.so \
    /wheel/onnxruntime/capi/libonnxruntime_providers_shared.so \
    /wheel/onnxruntime/LICENSE /wheel/onnxruntime/ThirdPartyNotices.txt /onnxruntime

FROM gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="blockdrop" \
    org.opencontainers.image.description="An inference server that runs only the residual blocks an image needs" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build /blockdrop /usr/local/bin/
COPY --from=onnxruntime /onnxruntime /opt/onnxruntime
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/blockdrop/
COPY models /models
ENV ORT_DYLIB_PATH=/opt/onnxruntime/libonnxruntime.so \
    BLOCKDROP_MODELS=/models
# HTTP and gRPC. The admin listener stays inside the container unless BLOCKDROP_ADMIN_ADDR says otherwise.
EXPOSE 8080 9000
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m CMD ["/usr/local/bin/blockdrop", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/blockdrop"]
CMD ["serve"]

FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04@sha256:14d94b039cb94bbd5da559f303b46bc4b0d5d6c24ab1a9d7b186e566ed3400dc AS cuda
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="blockdrop" \
    org.opencontainers.image.description="An inference server that runs only the residual blocks an image needs, on NVIDIA GPUs" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build /blockdrop /usr/local/bin/
COPY --from=onnxruntime-cuda /onnxruntime /opt/onnxruntime
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/blockdrop/
COPY models /models
ENV ORT_DYLIB_PATH=/opt/onnxruntime/libonnxruntime.so \
    BLOCKDROP_MODELS=/models \
    BLOCKDROP_PROVIDER=cuda \
    NVIDIA_TF32_OVERRIDE=0
EXPOSE 8080 9000
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m CMD ["/usr/local/bin/blockdrop", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/blockdrop"]
CMD ["serve"]
