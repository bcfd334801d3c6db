package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
)

// metrics is everything that /metrics shows: the daemon's process, the
// requests, the guests, and what the rest of the daemon adds.
type metrics struct {
	gather   prometheus.Gatherers
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics(b Backend, more prometheus.Gatherer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cleave_http_requests_total", Help: "Requests answered, by route and status.",
		}, []string{"route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cleave_http_request_duration_seconds", Help: "Time to answer a request, without streams.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30},
		}, []string{"route"}),
	}
	r := prometheus.NewRegistry()
	r.MustRegister(m.requests, m.duration, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &guests{b})
	m.gather = prometheus.Gatherers{r}
	if more != nil {
		m.gather = append(m.gather, more)
	}
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.gather, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// observe counts one request. pattern is the route's, so that the number of
// series is bounded whatever is asked for.
func (m *metrics) observe(pattern string, status int, took time.Duration, stream bool) {
	if pattern == "" {
		pattern = "none"
	}
	m.requests.WithLabelValues(pattern, strconv.Itoa(status)).Inc()
	if !stream && pattern != "GET /v1/events" {
		m.duration.WithLabelValues(pattern).Observe(took.Seconds())
	}
}

// guests measures the guests when it is asked to.
type guests struct{ backend Backend }

var guestLabels = []string{"project", "name", "id"}

// guestMetric is one figure of a guest.
type guestMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*api.Stats) float64
}

const nanos = 1e-9

func guestGauge(name, help string, value func(*api.Stats) float64) guestMetric {
	return guestMetric{prometheus.NewDesc("cleave_instance_"+name, help, guestLabels, nil), prometheus.GaugeValue, value}
}

func guestCounter(name, help string, value func(*api.Stats) float64) guestMetric {
	return guestMetric{prometheus.NewDesc("cleave_instance_"+name, help, guestLabels, nil), prometheus.CounterValue, value}
}

var guestMetrics = []guestMetric{
	guestCounter("cpu_seconds_total", "CPU time used.", func(s *api.Stats) float64 { return float64(s.CPUNanos) * nanos }),
	guestCounter("cpu_throttled_seconds_total", "Time held back by the limit of CPU time.", func(s *api.Stats) float64 { return float64(s.ThrottledNanos) * nanos }),
	guestGauge("memory_bytes", "Memory in use, without cache that can be dropped at once.", func(s *api.Stats) float64 { return float64(s.Memory) }),
	guestGauge("memory_cache_bytes", "Page cache of the guest.", func(s *api.Stats) float64 { return float64(s.MemoryCache) }),
	guestGauge("memory_limit_bytes", "Limit of memory; 0 for none.", func(s *api.Stats) float64 { return float64(s.MemoryLimit) }),
	guestGauge("swap_bytes", "Swap in use.", func(s *api.Stats) float64 { return float64(s.Swap) }),
	guestCounter("oom_kills_total", "Processes killed for want of memory.", func(s *api.Stats) float64 { return float64(s.OOMKills) }),
	guestGauge("pids", "Processes and threads.", func(s *api.Stats) float64 { return float64(s.PIDs) }),
	guestGauge("disk_bytes", "Bytes that the root volume holds.", func(s *api.Stats) float64 { return float64(s.Disk) }),
	guestGauge("disk_limit_bytes", "Size of the root volume; 0 for no limit.", func(s *api.Stats) float64 { return float64(s.DiskLimit) }),
	guestCounter("disk_read_bytes_total", "Bytes read from disk.", func(s *api.Stats) float64 { return float64(s.ReadBytes) }),
	guestCounter("disk_written_bytes_total", "Bytes written to disk.", func(s *api.Stats) float64 { return float64(s.WriteBytes) }),
	guestCounter("disk_reads_total", "Read operations.", func(s *api.Stats) float64 { return float64(s.ReadOps) }),
	guestCounter("disk_writes_total", "Write operations.", func(s *api.Stats) float64 { return float64(s.WriteOps) }),
	guestCounter("network_receive_bytes_total", "Bytes received by the guest.", func(s *api.Stats) float64 { return float64(s.RxBytes) }),
	guestCounter("network_transmit_bytes_total", "Bytes sent by the guest.", func(s *api.Stats) float64 { return float64(s.TxBytes) }),
	guestCounter("network_receive_packets_total", "Packets received by the guest.", func(s *api.Stats) float64 { return float64(s.RxPackets) }),
	guestCounter("network_transmit_packets_total", "Packets sent by the guest.", func(s *api.Stats) float64 { return float64(s.TxPackets) }),
	guestCounter("network_dropped_packets_total", "Packets dropped both ways.", func(s *api.Stats) float64 { return float64(s.Dropped) }),
}

var (
	pressureDesc = prometheus.NewDesc("cleave_instance_pressure_seconds_total",
		"Time that some or all tasks of the guest waited for a resource (PSI).", append(guestLabels, "resource", "share"), nil)
	phaseDesc = prometheus.NewDesc("cleave_instances", "Instances by phase.", []string{"phase"}, nil)
)

// statsTimeout keeps a scrape from hanging on a guest that can't be measured.
const statsTimeout = 10 * time.Second

// Describe implements prometheus.Collector.
func (g *guests) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range guestMetrics {
		ch <- m.desc
	}
	ch <- pressureDesc
	ch <- phaseDesc
}

// Collect implements prometheus.Collector.
func (g *guests) Collect(ch chan<- prometheus.Metric) {
	if g.backend == nil {
		return
	}
	g.collectPhases(ch)
	ctx, cancel := context.WithTimeout(context.Background(), statsTimeout)
	defer cancel()
	all, err := g.backend.AllStats(ctx, "")
	if err != nil {
		ch <- prometheus.NewInvalidMetric(guestMetrics[0].desc, err)
		return
	}
	for i := range all {
		st := &all[i]
		for _, m := range guestMetrics {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(st), st.Project, st.Name, st.ID)
		}
		for resource, p := range st.Pressure {
			// PSI counts microseconds.
			ch <- prometheus.MustNewConstMetric(pressureDesc, prometheus.CounterValue, float64(p.SomeTotal)*1e-6, st.Project, st.Name, st.ID, resource, "some")
			ch <- prometheus.MustNewConstMetric(pressureDesc, prometheus.CounterValue, float64(p.FullTotal)*1e-6, st.Project, st.Name, st.ID, resource, "full")
		}
	}
}

func (g *guests) collectPhases(ch chan<- prometheus.Metric) {
	l, err := g.backend.Instances("", control.Query{AllProjects: true})
	if err != nil {
		ch <- prometheus.NewInvalidMetric(phaseDesc, err)
		return
	}
	count := map[api.Phase]int{}
	for i := range l.Items {
		count[l.Items[i].Status.Phase]++
	}
	for phase, n := range count {
		ch <- prometheus.MustNewConstMetric(phaseDesc, prometheus.GaugeValue, float64(n), string(phase))
	}
}
