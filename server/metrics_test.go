package server

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cleave-project/cleave/api"
)

func TestMetricsShowGuestsAndRequests(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	f.instances["default/web"].Status.Phase = api.PhaseRunning
	f.stats = []api.Stats{{ID: "abc", Name: "web", Project: "default", CPUNanos: 1.5e9, Memory: 4096, Pressure: map[string]api.Stall{"io": {SomeTotal: 2e6}}}}
	more := prometheus.NewRegistry()
	more.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "cleave_other"}, func() float64 { return 3 }))
	h := startWith(t, Options{Backend: f, Metrics: more, Log: quiet()}, defaultTimeouts)
	h.do("GET", "/v1/instances/web", "")
	h.do("GET", "/nowhere", "")
	_, text := h.do("GET", "/metrics", "")
	for _, want := range []string{
		`cleave_instance_cpu_seconds_total{id="abc",name="web",project="default"} 1.5`,
		`cleave_instance_memory_bytes{id="abc",name="web",project="default"} 4096`,
		`cleave_instance_pressure_seconds_total{id="abc",name="web",project="default",resource="io",share="some"} 2`,
		`cleave_instances{phase="running"} 1`,
		`cleave_http_requests_total{code="200",route="GET /v1/instances/{name}"} 1`,
		`cleave_http_requests_total{code="404",route="none"} 1`,
		`cleave_http_request_duration_seconds_count{route="GET /v1/instances/{name}"} 1`,
		`cleave_other 3`,
		"process_resident_memory_bytes ",
		"go_goroutines ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestHealthNamesWhatFails(t *testing.T) {
	var failing error
	o := Options{Backend: newFake(), Version: "1.2.3", Log: quiet(), Health: func(context.Context) map[string]error {
		return map[string]error{"store": nil, "keeper": failing}
	}}
	h := startWith(t, o, defaultTimeouts)
	resp, text := h.do("GET", "/healthz", "")
	if want := `{"status":"ok","version":"1.2.3","subsystems":{"api":"ok","keeper":"ok","store":"ok"}}`; resp.StatusCode != 200 || strings.TrimSpace(text) != want {
		t.Errorf("got %s %s", resp.Status, text)
	}
	failing = errors.New("it is gone")
	resp, text = h.do("GET", "/healthz", "")
	if got := decode[health](t, text); resp.StatusCode != 503 || got.Status != "failing" || got.Subsystems["keeper"] != "it is gone" {
		t.Errorf("got %s %s", resp.Status, text)
	}
}
