# Cleave: the everyday targets. `make up` and `make test` are all a newcomer
# needs; each target says what it does in `make help`.

PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

GOFLAGS_BUILD := -trimpath -ldflags "-s -w -X main.version=$(VERSION) -X github.com/cleave-project/cleave/cli.Version=$(VERSION)"
export CGO_ENABLED := 0

.PHONY: help up down build agents appliance test quick long fuzz bench bench-vmm lint generate install uninstall clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## install what is missing, build, start the daemon and a guest behind each wall (root)
	@script/up

down: ## stop all guests and the daemon, leave nothing running; PURGE=1 deletes data too
	@PURGE="$(PURGE)" script/down

build: bin/busybox ## put the binaries into bin/
	go build $(GOFLAGS_BUILD) -o bin/ ./cmd/...

agents: ## build the agents for guests of other architectures than this host's
	@for arch in amd64 arm64 riscv64; do \
		[ $$arch = "$$(go env GOARCH)" ] || GOARCH=$$arch go build $(GOFLAGS_BUILD) -o bin/cleave-agent.$$arch ./cmd/cleave-agent || exit 1; \
	done

appliance: build ## build the system of a host (docs/lab.md) in build/appliance, and print where
	@go run ./cmd/lab appliance --dir build/appliance

# The built-in image needs a static busybox; it is the distribution's own.
bin/busybox:
	@script/busybox $@

test: ## install what the tests need and run all of them (root)
	@script/test all

quick: ## unit tests only
	@script/test quick

long: ## tests on a real daemon with real guests (root)
	@script/test long

fuzz: ## run each fuzz target for FUZZTIME (1m), of all packages or of those in FUZZ
	@FUZZTIME="$(FUZZTIME)" script/fuzz $(FUZZ)

bench: build ## print figures, side by side with LXD and runc where installed (root)
	go run ./internal/bench $(BENCH)

bench-vmm: build ## print our monitor's figures beside QEMU's, in a host of the lab
	go run ./internal/bench/vmm $(BENCH)

lint: ## formatting and static checks
	@script/lint

generate: ## rewrite what is generated: docs/api.md, docs/cli.md
	go generate ./...

install: build agents ## install below PREFIX (and DESTDIR), with systemd units and man pages
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" script/install

uninstall: ## remove what install put there
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" script/install --remove

clean: ## remove what build made
	rm -rf bin build
