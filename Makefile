# The commands of this repository. `make help` lists them.

# Everything fetched or built lives outside the clone, so that a new clone starts warm.
export SHOAL_CACHE ?= $(HOME)/.cache/shoal
export CARGO_TARGET_DIR ?= $(SHOAL_CACHE)/target
# What the tests and the demo start: folders made by setup/.
export SHOAL_KAFKA_HOME ?= $(shell setup/kafka --print)
export SHOAL_REGISTRY_HOME ?= $(shell setup/registry --print)
export SHOAL_ETCD_HOME ?= $(shell setup/etcd --print)
export SHOAL_AZURITE_HOME ?= $(shell setup/azurite --print)
export SHOAL_PYTHON ?= $(shell setup/python --print)

.DEFAULT_GOAL := help
.PHONY: help setup build demo test history bench fmt lint fmt-check clippy docs tidy licences compose-check

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## fetch everything the tests need (Kafka, schema registry, etcd, Azurite, Python packages)
	@setup/all

# --workspace: most features are those that `make test` builds with, so most dependencies are built once.
build: ## build the `shoal` binary
	cargo build --locked --workspace --bin shoal

demo: ## start Shoal on a real Kafka, publish 20,000 embeddings, search them (DEMO_STAY=1 keeps it up)
	@setup/kafka
	@$(MAKE) --no-print-directory build
	@$(CARGO_TARGET_DIR)/debug/shoal demo --data tests/data/wordnet20k

test: setup ## run every test, against a real Kafka and a real schema registry
	cargo test --locked --workspace --no-fail-fast

history: setup ## random operations under random kills for SECONDS (600), checked afterwards; SEED=... repeats one
	SHOAL_HISTORY_SECONDS=$(or $(SECONDS),600) cargo test --locked --workspace --test e2e -- --nocapture history::

bench: ## measure one figure: make bench NAME=ingest (names: docs/benchmarks.md)
	@test -n "$(NAME)" || { echo 'usage: make bench NAME=...   (names: docs/benchmarks.md)' >&2; exit 2; }
	@setup/kafka
	tests/bench/run $(NAME)

fmt: ## format the Rust code
	cargo fmt --all

lint: fmt-check clippy ## check formatting and clippy, warnings are errors

fmt-check:
	cargo fmt --all --check

clippy:
	cargo clippy --locked --workspace --all-targets -- -D warnings

docs: ## build the API docs, warnings are errors
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --workspace

tidy: ## check the rules of the source tree that no lint knows (also part of make test)
	@mkdir -p $(CARGO_TARGET_DIR)
	@rustc --edition 2024 --test tests/tidy.rs -o $(CARGO_TARGET_DIR)/tidy
	@CARGO_MANIFEST_DIR=$(CURDIR) $(CARGO_TARGET_DIR)/tidy

licences: ## check the dependencies' licences and sources against deny.toml
	@setup/python
	@cargo metadata --locked --format-version 1 --all-features | $(SHOAL_PYTHON) tests/licences/check.py deny.toml

# The binary is the one that `make test` builds: with `make build` many dependencies have other features.
compose-check: ## check docker-compose.yml without a container engine
	@setup/python
	@cargo test --locked --workspace --no-run --quiet
	@$(SHOAL_PYTHON) tests/compose/check.py --shoal $(CARGO_TARGET_DIR)/debug/shoal docker-compose.yml
