#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Build an OpenTelemetry Collector and Jaeger into build/backends, for the tests that send spans to them.
#
# Only those tests need them, and not every machine has Go or a way to its module proxy.  So this never fails:
# what could not be built has its reason in build/backends/NAME.reason, and the tests are skipped with it.
# EBPFTRACE_BACKENDS=0 leaves both out; EBPFTRACE_BACKENDS_SECONDS is how long both together may take.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 0

sources=scripts/backends
out=build/backends
work=$out/src # go adds to go.mod what is needed indirectly, and that is not for the repository
seconds=${EBPFTRACE_BACKENDS_SECONDS:-1200}
probe_seconds=90 # for a proxy that never answers, as behind a firewall

# some machines have go where only a login shell looks
PATH=$PATH:/usr/local/go/bin
# No look-up at sum.golang.org: mirrors of the proxy often come without it.
export GOFLAGS='-mod=mod -buildvcs=false' GONOSUMDB='*' GOWORK=off CGO_ENABLED=0

limited() { # SECONDS COMMAND...: the signal is what go ends cleanly at; Ctrl-C reaches it too
	timeout --foreground -s INT -k 10 "$@"
}

# go's last words that are not about progress
last_words() { # LOG
	grep -v '^go: \(downloading\|finding\|added\|upgraded\) ' "$1" | grep . | tail -n 1 | cut -c 1-300 | grep . ||
		echo "go failed and did not say why"
}

up_to_date() { # NAME
	[ -x "$out/$1" ] && [ "$(cat "$out/$1.stamp" 2>/dev/null)" = "$wanted" ]
}

# Print why nothing can be built
obstacle() {
	local code=0
	if [ "${EBPFTRACE_BACKENDS:-}" = 0 ]; then
		echo "EBPFTRACE_BACKENDS is 0"
	elif ! command -v go >/dev/null; then
		echo "there is no go in PATH"
	else
		limited $probe_seconds go mod download -C "$work" go.opentelemetry.io/collector/otelcol >"$out/probe.log" 2>&1 ||
			code=$?
		case $code in
		0) ;;
		124 | 137) echo "Go's module proxy did not answer within $probe_seconds s" ;;
		*) last_words "$out/probe.log" ;;
		esac
	fi
}

build() { # NAME PACKAGE: print why not
	local left=$((seconds - SECONDS)) code=124
	[ $left -le 0 ] || {
		limited $left go build -C "$work" -ldflags '-s -w' -o "$PWD/$out/$1.new" "$2" >"$out/$1.log" 2>&1
		code=$?
	}
	case $code in
	0) mv "$out/$1.new" "$out/$1" && echo "$wanted" >"$out/$1.stamp" ;;
	124 | 137) echo "it took longer than $seconds s; the next run goes on from there" ;;
	*) last_words "$out/$1.log" ;;
	esac
}

# Build one unless there is an obstacle, and keep the reason if it is not there
provide() { # NAME PACKAGE OBSTACLE
	local reason=$3
	if [ -z "$reason" ]; then
		echo "backends: building $1 with $(go env GOVERSION); the first time this takes minutes"
		reason=$(build "$1" "$2")
	fi
	if [ -n "$reason" ]; then
		echo "$reason" >"$out/$1.reason"
		echo "backends: $1 is not built, and its tests are skipped: $reason" >&2
	fi
}

main() {
	local reason
	mkdir -p $out || return
	wanted=$(cat $sources/go.mod $sources/*/*.go | cksum)
	if up_to_date otelcol && up_to_date jaeger; then
		return
	fi
	rm -rf $work $out/{otelcol,jaeger}{,.new,.stamp,.reason}
	cp -r $sources $work
	reason=$(obstacle)
	provide otelcol ./otelcol "$reason"
	provide jaeger github.com/jaegertracing/jaeger/cmd/jaeger "$reason"
}

main
exit 0
