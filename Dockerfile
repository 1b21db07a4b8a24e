# A static binary and nothing else: no shell, no package manager, not root.
# Build:  docker build --build-arg VERSION=$(git describe --tags --always) -t mynah .
# Run:    see docker-compose.yml

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/mynah ./cmd/mynah \
 && mkdir -m 0700 /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/mynah /mynah
# Owned by the user below, so that a volume mounted here is writable for it.
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
ENV MYNAH_DATA_DIR=/data \
    MYNAH_METRICS_ADDR=:9090 \
    MYNAH_LOG_FORMAT=json
VOLUME /data
# MQTT, MQTT over TLS, HTTP with WebSocket, metrics
EXPOSE 1883 8883 8080 9090
# Every long-running command serves /readyz on its metrics listener.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/mynah", "health"]
ENTRYPOINT ["/mynah"]
CMD ["serve"]
