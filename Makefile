# make help lists the targets. Building needs Go and make, nothing else; hack/ holds what the targets call.
GO      ?= go
PREFIX  ?= /usr/local
CNI_BIN ?= /opt/cni/bin
FUZZTIME ?= 10s
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# The version comes from VERSION; stamping would refuse a clone that belongs to another user (sudo make run).
export GOFLAGS += -buildvcs=false

PROGRAMS    := seine seined seine-cni
LDFLAGS     := -s -w -X main.version=$(VERSION)
UNITDIR      = $(PREFIX)/lib/systemd/system

.DEFAULT_GOAL := build
.PHONY: build run test lint deps vm bench fuzz install install-cni uninstall uninstall-cni clean help

build: ## build bin/seine, bin/seined and bin/seine-cni
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(PROGRAMS:%=./cmd/%)

run: build ## build, then run the daemon in the foreground (as root)
	@if [ "$$(id -u)" = 0 ]; then exec bin/seined --hold; else exec sudo bin/seined --hold; fi

test: deps lint ## everything that has to pass: lint and all tests, with the sums at the end
	@hack/test.sh

lint: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

deps: ## install the Debian packages that the tests use (when root)
	@hack/deps.sh

vm: ## the tests for kernel abilities that this machine may lack, in the VM lab
	@hack/vm/setup.sh >/dev/null && $(GO) run ./hack/testsum CGO_ENABLED=0 -count=1 -p 2 -timeout 10m \
		-exec '$(CURDIR)/hack/vm/run.sh --' $$(hack/vm/packages.sh) \
		-- CGO_ENABLED=0 -count=1 -timeout 10m -exec '$(CURDIR)/hack/vm/run.sh --' -run EveryPlugin ./test/cni

bench: build deps ## every figure that the README claims, as tables; BENCH="cni packets" chooses
	@hack/bench.sh $(BENCH)

fuzz: ## every fuzz target for FUZZTIME (10s)
	@hack/fuzz.sh $(FUZZTIME)

install: build ## programs and systemd unit under PREFIX (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR)
	install -m 755 $(PROGRAMS:%=bin/%) $(DESTDIR)$(PREFIX)/bin
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' dist/systemd/seined.service >$(DESTDIR)$(UNITDIR)/seined.service

install-cni: build ## seine-cni under the names of the reference plugins in CNI_BIN (/opt/cni/bin); uninstall-cni undoes it
	bin/seine cni install --bin-dir $(DESTDIR)$(CNI_BIN)

uninstall-cni: build ## what install-cni replaced in CNI_BIN, back in place
	bin/seine cni uninstall --bin-dir $(DESTDIR)$(CNI_BIN)

uninstall: ## remove what install put there (run "seine reset" first to clear the kernel)
	rm -f $(PROGRAMS:%=$(DESTDIR)$(PREFIX)/bin/%) $(DESTDIR)$(UNITDIR)/seined.service

clean: ## remove what was built
	rm -rf bin

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
