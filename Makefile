# Slipway's build. `make help` says what there is. Needed beforehand: git, make, Go 1.26 or newer.

GO          ?= go
FUZZTIME    ?= 60s
BENCHFLAGS  ?=
GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
PACKAGES    := ./...
SOURCES     := cmd netstack portfwd runtime bench metrics

VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null)
# The version comes from here and not from Go's own stamp, which fails where the tree belongs to somebody else.
BUILD       := $(GO) build -trimpath -buildvcs=false -ldflags '-s -w$(if $(VERSION), -X main.version=$(VERSION))'

export CGO_ENABLED = 0

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help deps deps-tests deps-clients deps-browser docs test-page build demo test vet test-unit test-bench test-race test-e2e conformance flood stall long-path locked-cost scrape scrape-cost compare-pairs test-clients integrity integrity-race fuzz fuzz-planted bench lint cover clean

help: ## this list
	@echo 'Slipway: rootless containers on a fast user-space network. Targets:'
	@echo
	@sed -n 's/^\([a-z][a-z0-9-]*\):[^#]*## \(.*\)/\1	\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='	' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done
	@echo
	@echo 'First time here? make demo'

deps: ## install the missing system packages, give you sub-ids, open /dev/net/tun
	@sh .make/deps.sh

deps-tests: ## deps, and what only the tests run: Prometheus
	@sh .make/deps.sh tests

deps-clients: ## deps, and the programs of test-clients: RootlessKit, Docker, Podman, Buildah
	@sh .make/deps.sh clients

deps-browser: ## deps, and Chromium, which test-page opens the HTML report with
	@sh .make/deps.sh browser

build: ## build bin/slipway (static), bin/slirp4netns as a link to it, and bin/slipway-plot, which draws reports
	@mkdir -p bin
	$(BUILD) -o bin/ ./cmd/slipway ./cmd/slipway-plot
	@ln -sf slipway bin/slirp4netns

demo: deps build ## a rootless web server, its port published, iperf3 both ways, the gap table
	@sh .make/demo.sh

test: deps-tests build vet test-unit test-bench test-e2e test-clients ## everything that must pass: vet, unit, end-to-end and clients' tests

vet: ## go vet, also of the end-to-end tests, and the arm64 build
	$(GO) vet $(PACKAGES)
	$(GO) vet -tags e2e,clients $(PACKAGES)
	GOARCH=arm64 $(GO) build $(PACKAGES)
	GOARCH=arm64 $(GO) vet $(PACKAGES)

test-unit: ## unit tests
	$(GO) test $(PACKAGES)

test-bench: ## every Go benchmark for a few iterations, to see that they run
	$(GO) test -run '^$$' -bench . -benchtime 20x $(PACKAGES)

test-race: ## unit tests with the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race $(PACKAGES)

test-e2e: build ## end-to-end tests, as you; for root also as an ordinary user
	@sh .make/e2e.sh

conformance: build ## one network suite for slipway's slirp4netns and for slirp4netns itself: who passes what, with offloads and plain frames, locked up and not
	@E2EFLAGS='-test.parallel 6 -test.run TestConformance' sh .make/e2e.sh

flood: build ## a guest that floods its network: others' throughput, memory, counters (3 minutes)
	@E2EFLAGS='-test.run TestFlood' sh .make/e2e.sh

stall: build ## page loads at every MTU meet no time-out and no closed window
	@E2EFLAGS='-test.run TestStall' sh .make/e2e.sh

long-path: build ## one flow each way over 100 ms: the host itself, slipway, slirp4netns
	@E2EFLAGS='-test.run TestLongPath -test.timeout 15m' sh .make/e2e.sh

locked-cost: build ## what --enable-sandbox and --enable-seccomp cost in CPU time, in pairs (5 minutes)
	@E2EFLAGS='-test.run TestLockedCost' sh .make/e2e.sh

scrape: build ## a Prometheus scrapes flows of a minute each: its bytes and those of iperf3 (5 minutes)
	@SLIPWAY_E2E_SECONDS=60 E2EFLAGS='-test.run TestScrapedBytes' sh .make/e2e.sh

scrape-cost: build ## what being scraped ten times a second costs in CPU time, in pairs (5 minutes)
	@E2EFLAGS='-test.run TestScrapeCost' sh .make/e2e.sh

compare-pairs: build ## bench compare on 20 runs of a build beside itself, and on 20 of one slower by a tenth (25 minutes)
	SLIPWAY_BIN=$(CURDIR)/bin/slipway $(GO) test -tags e2e -count 1 -timeout 90m -v -run TestComparePairs ./cmd/slipway

test-clients: build ## real clients of slirp4netns on bin/slirp4netns, or on SLIRP4NETNS=PATH
	@sh .make/clients.sh

integrity: build ## 1 GiB each way over every path, MTU and device, and 64 flows of 64 MiB, as you and, for root, as a user (25 minutes)
	@SLIPWAY_E2E_BYTES=1073741824 E2EFLAGS='-test.run TestIntegrity -test.timeout 60m' sh .make/e2e.sh

integrity-race: build ## 64 flows of 4 MiB and flows that are reset, on a bin/slipway-race built with the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) build -race -trimpath -buildvcs=false -o bin/slipway-race ./cmd/slipway
	@SLIPWAY_E2E_SANDBOX=off E2EFLAGS='-test.run TestIntegrity/mtu=/flows=64|TestForeignBytes -test.timeout 30m' sh .make/e2e.sh

fuzz: ## every fuzz target, FUZZTIME each (60s)
	@sh .make/fuzz.sh $(FUZZTIME)

fuzz-planted: ## each fuzz target finds the bugs planted for it
	@sh .make/fuzz-planted.sh

bench: build ## the gap table (BENCHFLAGS='--json FILE ...')
	bin/slipway bench $(BENCHFLAGS)

docs: ## docs/benchmarks.md, its plots and the README's table, from docs/benchmarks.json
	$(GO) test ./bench/plot -run TestDocs -update

test-page: deps-browser ## the HTML report in a headless Chromium, with pictures in bin/page
	@mkdir -p bin/page
	SLIPWAY_SCREENSHOTS=$(CURDIR)/bin/page $(GO) test -count 1 ./bench/plot -run TestPageInBrowser -v

lint: ## gofmt, go vet, golangci-lint
	@unformatted=$$(gofmt -l $(wildcard $(SOURCES))); \
		if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet $(PACKAGES)
	$(GO) run $(GOLANGCI) run

cover: ## unit tests' coverage by function, in cover.out
	$(GO) test -coverprofile=cover.out $(PACKAGES)
	@$(GO) tool cover -func=cover.out | tail -n 1

clean: ## remove what was built
	rm -rf bin cover.out
