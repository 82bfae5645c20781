# make demo    prepare, train, serve and regenerate on the bundled sample of real data; KEEP=1 ends with a page
# make test    the whole test suite, in two processes; WORKERS=0 in one
# make check   linting, formatting, strict typing, Dockerfile and compose file, and that everything imports
# make image-test  builds the image without Docker (Debian, root) and asks its processes the demo's question
# make docs    docs/reference.md and .env.example, written from the code
# make charts  docs/charts/*.svg and the table of docs/results.md, from the numbers in docs/data
# make screenshots  docs/screenshots, of a demo, in Debian's chromium
# make map     the rooms, their files and which room imports which
# make interop  RecBole as an oracle; RecBole, RecTools and RePlay train on the exports; in .venv-interop
# make mutants  small faults in decoding, metrics, preparation, jobs, mappings, batcher: does a test notice each?
# make fuzz-reader  100,000 mutated files through both callers of the reader
# make chaos   a job of 10,000 sequences, twenty times, while workers, API, Redis and PostgreSQL are killed
# make chaos-activations  a hundred activations under load over two replicas of the API: no failed and no mixed answer
# make attack  what once took the service down, against a running one: a line each, right or wrong
# make fuzz    100,000 mutated bodies, uploads, URIs and headers; ARGS='--cases 2000' for less
# make ray-test  regeneration by a Ray cluster of this machine, one of whose actors is killed: the bytes of one process
# make sbom    sbom.json: what is installed, as CycloneDX
# make fuzz-openapi  10,000 requests drawn from the OpenAPI document with the key of each scope; ARGS='--cases 500' for less
# make soak    half an hour of mixed load while everything is killed; ARGS='--minutes 3' for less
# make bench   every benchmark but bench-abxi, bench-recbole, bench-refresh and bench-regenerate; the last line of each is its result as JSON
# make bench-regenerate   a million synthetic sequences, by this process and by Ray, killed and resumed: hours; ARGS='--sequences 20000'
# make bench-decode | bench-training | bench-serving | bench-scaling | bench-page   one of them: make bench-decode ARGS='--rounds 9'
# make bench-prepare   a synthetic log prepared under 1 GB, in memory, by pandas and by Polars; ARGS='--rows 10000000'
# make bench-refresh   ten days of refreshes next to trainings from nothing; ARGS='--log LOG.csv --days 10'
# make bench-abxi   our ABXI next to its authors' figures, by their measure: an hour a seed; ARGS='--log LOG.csv --folder OUT'
# make bench-recbole   training speed of SASRec and GRU4Rec next to RecBole's own trainer, in .venv-interop
#
# On a fresh machine each of them first builds .venv; only Python >= 3.11 with venv is needed. PYTHON names another
# interpreter, VENV another folder, ARGS goes to pytest: make test ARGS='-k contrastive -x'

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Where it is set, every process of the suite and of the demo compiles this project anew, for nearly a second
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV ?= .venv
INTEROP ?= .venv-interop
ARGS ?=
WORKERS ?= 2
IMAGE_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help install demo test check docs interop bench bench-recbole chaos chaos-activations mutants ray-test image-test clean charts map sbom screenshots

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(INSTALLED)

# torch goes first and alone, so that whoever wants another build of it (CUDA, ROCm) installs that into $(VENV)
# beforehand and keeps it: pip is content with any build of the pinned version.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Taesar needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# For the chart's tests; where it cannot be had they say so.
$(BIN)/helm: $(INSTALLED)
	.ci/install-helm $(BIN)

# What is in the image, as CycloneDX: every Python package with its version and licence.
sbom: $(INSTALLED)
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible -o sbom.json

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py $(if $(KEEP),--keep)

# It runs in two processes (WORKERS=0: in this one), each with servers of its own; with a thread each, or they get in each other's way.
test: $(INSTALLED) $(BIN)/helm
	$(if $(filter-out 0,$(WORKERS)),OMP_NUM_THREADS=1) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(INSTALLED) $(BIN)/helm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	if [ -x $(BIN)/helm ]; then $(BIN)/helm lint --strict deploy/chart; fi
	$(BIN)/python -W error -c 'import pkgutil, importlib, app, models; \
	  [importlib.import_module(m.name) for p in (app, models) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]'

docs: $(INSTALLED)
	$(BIN)/python docs/write_reference.py

charts: $(INSTALLED)
	$(BIN)/python docs/draw_charts.py

screenshots: $(INSTALLED)
	$(BIN)/python docs/take_screenshots.py

map: $(INSTALLED)
	@$(BIN)/python docs/print_map.py

# Their pins are years old; without dependencies they run next to ours (tests/interop/requirements.txt).
$(INTEROP)/.installed: pyproject.toml constraints.txt tests/interop/requirements.txt
	@test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(INTEROP)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(INTEROP)/bin/python -m pip install --quiet --no-deps -r tests/interop/requirements.txt
	@touch $@

interop: $(INTEROP)/.installed
	$(INTEROP)/bin/python -m pytest tests/interop $(ARGS)

# All but bench_recbole.py, which has an environment of its own, and those that take hours.
LONG_BENCHES := abxi recbole refresh regenerate
BENCHES := $(filter-out $(LONG_BENCHES:%=benchmarks/bench_%.py),$(sort $(wildcard benchmarks/bench_*.py)))
bench: $(INSTALLED)
	@for bench in $(BENCHES); do echo "== $$bench"; $(BIN)/python -m benchmarks.$$(basename "$$bench" .py) $(ARGS); done

# One of them: bench-decode, bench-training, bench-serving, bench-scaling and so on, as the files are called.
bench-%: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_$(subst -,_,$*) $(ARGS)

bench-recbole: $(INTEROP)/.installed
	$(INTEROP)/bin/python -m benchmarks.bench_recbole $(ARGS)

# ARGS='--per-module 40 batching': a sample of 40 faults in modules with this word in their path.
mutants: $(INSTALLED)
	$(BIN)/python -m tests.mutation $(ARGS)

fuzz-reader: $(INSTALLED)
	POLARS_MAX_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.reader_fuzz $(ARGS)

chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos $(ARGS)

chaos-activations: $(INSTALLED)
	$(BIN)/python -m tests.chaos.activations $(ARGS)

attack: $(INSTALLED)
	$(BIN)/python -m tests.attack $(ARGS)

fuzz: $(INSTALLED)
	$(BIN)/python -m tests.attack.fuzz $(ARGS)

fuzz-openapi: $(INSTALLED)
	$(BIN)/python -m tests.attack.openapi_cases $(ARGS)

soak: $(INSTALLED)
	$(BIN)/python -m tests.attack.soak $(ARGS)

ray-test: $(INSTALLED)
	TAESAR_TEST_RAY=1 $(BIN)/python -m pytest tests/models/test_ray_engine.py -v $(ARGS)

# IMAGE_ARGS goes to buildah's build: what pip needs on this machine (docs/deployment.md).
image-test: $(INSTALLED)
	.ci/build-image $(IMAGE_ARGS)
	TAESAR_TEST_IMAGE=localhost/taesar TAESAR_TEST_BUILDAH="$$(.ci/build-image --command)" \
	  $(BIN)/python -m pytest tests/test_image.py -v $(ARGS)

clean:
	.ci/build-image --clean
	rm -rf $(VENV) build sbom.json demo-run *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
