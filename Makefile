# `make` alone prints what there is. Everything here works in a fresh clone on
# Debian with Go; what else is needed is installed by `make setup`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
TOOL    := go tool -modfile=tools/go.mod
PKGS     = $(shell go list ./...)
# The binary that e2e starts is built without the race detector, so running it
# under -race would show nothing that `make test` does not.
RACE_PKGS = $(shell go list ./... | grep -v '/e2e')
# How much: executions of each fuzz target, how long the torture.
FUZZ    ?= 20000
TORTURE ?= 5m
# Further flags of run, bench and torture.
ARGS    ?=

.PHONY: help
help: ## Print this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what is missing for running and testing (apt, npm)
	@tools/setup test

.PHONY: build
build: ## Build bin/mynah
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/mynah ./cmd/mynah

.PHONY: run
run: build ## Start everything for trying it out: build, install PostgreSQL if there is none, serve --dev
	@tools/setup run
	@exec bin/mynah serve --dev $(ARGS)

.PHONY: test
test: setup ## Run all tests; nothing has to be started by hand and nothing is skipped
	go test -p 2 -timeout 15m $(PKGS)
	cd sdk && npm run --silent check && npm test --silent

.PHONY: torture
torture: build ## Kill, stop and cut everything under load for TORTURE=5m and count what is lost
	@tools/setup test
	go run ./torture --duration $(TORTURE) $(ARGS)

.PHONY: bench
bench: build ## Measure beside Mosquitto in the same run (ARGS=--quick; see bench/README.md)
	@tools/setup test
	go run ./bench/cmd/bench $(ARGS)

.PHONY: check
check: tidy fmt lint vet dead race fuzz ## All that must hold before a commit lands, besides make test

.PHONY: tidy
tidy:
	go mod tidy -diff

.PHONY: fmt
fmt:
	@files=$$($(TOOL) gofumpt -l $$(git ls-files '*.go')); \
	if [[ -n $$files ]]; then echo "not formatted (run gofumpt -w):"; echo "$$files"; exit 1; fi

.PHONY: lint
lint:
	$(TOOL) golangci-lint run --allow-parallel-runners ./...

.PHONY: vet
vet:
	go vet ./...

.PHONY: dead
dead: ## Look for functions that nothing calls, or tests alone
	tools/dead

.PHONY: race
race: setup
	go test -race -shuffle=on -p 2 -timeout 25m $(RACE_PKGS)

.PHONY: fuzz
fuzz: ## Fuzz every target a little (FUZZ=20000 executions each)
	tools/fuzz $(FUZZ)

.PHONY: vuln
vuln: ## Look for known vulnerabilities (needs the Go vulnerability database)
	$(TOOL) govulncheck ./...

.PHONY: clean
clean: ## Remove what was built; data/ stays
	rm -rf bin
