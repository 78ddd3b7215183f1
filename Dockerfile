# geoclip serve in a container: no root, no writing but to its volumes. Weights and caches lie in /data.
#   docker build -t open-geoclip . && docker compose up
# Each step is a target of the Makefile; `make container` runs them without an engine and checks the result.
FROM node:22-bookworm AS page
WORKDIR /src
COPY Makefile ./
COPY web/package.json web/package-lock.json web/.npmrc web/
RUN make node-modules

FROM python:3.11-bookworm AS build
WORKDIR /src
COPY --from=page /usr/local/bin/node /usr/local/bin/node
COPY --from=page /src/web/node_modules web/node_modules
COPY Makefile constraints.txt pyproject.toml hatch_build.py README.md LICENSE ./
COPY web web
COPY src src
RUN make container-venv PREFIX=/opt/geoclip

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin geoclip && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/geoclip /opt/geoclip
ENV PATH=/opt/geoclip/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    HF_HOME=/data/hub \
    OPEN_GEOCLIP_CACHE=/data/cache \
    OPEN_GEOCLIP_SERVE_HOST=0.0.0.0
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["geoclip"]
CMD ["serve"]
