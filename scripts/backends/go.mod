// What scripts/backends.sh builds. The versions that Jaeger asks for are the Collector's too, so that most of the two is
// compiled once. v1.76.0 is Jaeger v2.13: the module path of v2 is still that of v1.
module ebpftrace.test/backends

go 1.25.0

require (
	github.com/jaegertracing/jaeger v1.76.0
	github.com/open-telemetry/opentelemetry-collector-contrib/exporter/fileexporter v0.140.1
	go.opentelemetry.io/collector/otelcol v0.140.0
)

// as in Jaeger's own go.mod; only a main module's counts
replace github.com/Shopify/sarama => github.com/Shopify/sarama v1.33.0
