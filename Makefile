# Every target does the set-up that it needs: `make serve` works on a fresh clone.

PYTHON ?= python3
HOST = $(or $(TAGGER_HOST),127.0.0.1)
PORT = $(or $(TAGGER_PORT),8000)
PYTEST_ARGS ?=
RAY_ARGS ?=
DOCKER ?= docker
IMAGE_ARGS ?=
IMAGE_CHECK_ARGS ?=
AUDIT_ARGS ?=
RELEASE_ARGS ?=

# The newest that runs on Debian's Node.js 18, too
SPECTRAL := @stoplight/spectral-cli@6.16.3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup serve ray test test-ray lint lint-openapi docs format image image-check lock sbom audit release clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv and install everything; quick when nothing changed

# The stamp is written last, so that an interrupted install is done again.
$(INSTALLED): pyproject.toml music_tagger_client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11. Name a newer one: make PYTHON=python3.12 setup" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --editable ./music_tagger_client
	@touch $@

serve: $(INSTALLED) ## serve on http://HOST:PORT (127.0.0.1:8000)
	$(BIN)/music-tagger serve --host $(HOST) --port $(PORT)

ray: $(INSTALLED) ## serve on Ray on this machine, with RAY_ARGS='--replicas 2'
	$(BIN)/python -m pip install --quiet --editable '.[ray]'
	$(BIN)/python -m deploy.ray.local --port $(PORT) $(RAY_ARGS)

test: $(INSTALLED) ## run the tests; narrow them with PYTEST_ARGS='-k metrics'
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-ray: $(INSTALLED) ## run the tests of deploy/ray, which start Ray: some minutes
	$(BIN)/python -m pip install --quiet --editable '.[ray]'
	$(BIN)/python -m pytest -m ray $(PYTEST_ARGS)

lint: $(INSTALLED) ## ruff, mypy --strict, hadolint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy --strict
	$(BIN)/hadolint Dockerfile

lint-openapi: $(INSTALLED) ## lint the OpenAPI document with Spectral; needs Node.js
	mkdir -p build
	$(BIN)/music-tagger openapi > build/openapi.json
	npx --yes $(SPECTRAL) lint --fail-severity=hint build/openapi.json

docs: $(INSTALLED) ## build the documentation into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED) ## put the code into shape
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

image: ## build the container image music-tagger; DOCKER=podman works too
	$(DOCKER) build --tag music-tagger $(IMAGE_ARGS) \
		--build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' app/__init__.py)" \
		--build-arg REVISION="$$(git rev-parse HEAD)" .

image-check: $(INSTALLED) ## build the image, run it hardened, and check it; minutes. IMAGE_CHECK_ARGS=--cuda
	$(BIN)/python -m scripts.image_check $(IMAGE_CHECK_ARGS)

lock: $(INSTALLED) ## resolve the image's packages anew, into deploy/image/*.lock
	$(BIN)/python -m scripts.lock

sbom: $(INSTALLED) ## what the images are made of, as CycloneDX, in artifacts/
	$(BIN)/python -m scripts.sbom

audit: $(INSTALLED) ## known vulnerabilities of the locked packages; AUDIT_ARGS=--may-be-offline
	$(BIN)/python -m scripts.audit $(AUDIT_ARGS)

release: $(INSTALLED) ## the check-list of a release, and its tag; RELEASE_ARGS=--dry-run
	$(BIN)/python -m scripts.release $(RELEASE_ARGS)

clean: ## remove .venv and everything that was made
	rm -rf $(VENV) build dist site artifacts *.egg-info music_tagger_client/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find app model music_tagger_client tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
