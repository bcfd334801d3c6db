package server

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

func TestLongWorkAnswersWithItsOperation(t *testing.T) {
	f := newFake()
	h := start(t, f)
	resp, text := h.do("POST", "/v1/instances?start=true", `{"name":"web","spec":{"image":"base"}}`)
	if resp.StatusCode != http.StatusAccepted || resp.Header.Get("Location") != "/v1/operations/opcreate" {
		t.Errorf("got %s at %q", resp.Status, resp.Header.Get("Location"))
	}
	if op := decode[api.Operation](t, text); op.ID != "opcreate" || op.State != api.OperationRunning {
		t.Errorf("got %s", text)
	}
	if want := []string{"create default/web"}; !slices.Equal(f.called(), want) || !f.lastStart {
		t.Errorf("backend saw %v, start %v", f.called(), f.lastStart)
	}
}

func TestPreferWaitAnswersWithTheEnd(t *testing.T) {
	f := newFake()
	h := start(t, f)
	f.whenWaited(func() {
		f.put(api.Operation{Meta: api.Meta{ID: "oppower"}, State: api.OperationRunning, Changes: 2})
		f.put(api.Operation{Meta: api.Meta{ID: "oppower"}, State: api.OperationFailed, Changes: 3})
	})
	resp, text := h.do("POST", "/v1/instances/web/start", `{}`, "Prefer", "respond-async, wait=30")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Preference-Applied") != "wait=30" {
		t.Errorf("got %s, applied %q", resp.Status, resp.Header.Get("Preference-Applied"))
	}
	if op := decode[api.Operation](t, text); op.State != api.OperationFailed {
		t.Errorf("got %s", text)
	}
}

func TestPreferWaitEndsInTime(t *testing.T) {
	f := newFake()
	h := start(t, f)
	begun := time.Now()
	resp, _ := h.do("POST", "/v1/instances/web/start", "", "Prefer", "wait=1")
	if resp.StatusCode != http.StatusAccepted || time.Since(begun) < 900*time.Millisecond {
		t.Errorf("got %s after %s", resp.Status, time.Since(begun))
	}
}

func TestWaitOutlastsTheBodysDeadline(t *testing.T) {
	f := newFake()
	h := start(t, f, func(t *timeouts) { t.body = time.Second })
	f.whenWaited(func() {
		time.Sleep(1500 * time.Millisecond)
		f.put(api.Operation{Meta: api.Meta{ID: "oppower"}, State: api.OperationDone, Changes: 2})
	})
	resp, _ := h.do("POST", "/v1/instances/web/start", "{}", "Prefer", "wait=60")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("got %s", resp.Status)
	}
}

func TestLongPollAnswersWithTheNextChange(t *testing.T) {
	f := newFake()
	h := start(t, f)
	f.put(api.Operation{Meta: api.Meta{ID: "op"}, State: api.OperationRunning, Changes: 5})
	if resp, text := h.do("GET", "/v1/operations/op?wait=60&changes=4", ""); decode[api.Operation](t, text).Changes != 5 {
		t.Errorf("what has changed already is not answered at once: %s %s", resp.Status, text)
	}
	for _, query := range []string{"wait=60&changes=5", "wait=60"} {
		f.put(api.Operation{Meta: api.Meta{ID: "op"}, State: api.OperationRunning, Changes: 5})
		f.whenWaited(func() {
			f.put(api.Operation{Meta: api.Meta{ID: "op"}, State: api.OperationRunning, Changes: 6})
		})
		_, text := h.do("GET", "/v1/operations/op?"+query, "")
		if op := decode[api.Operation](t, text); op.Changes != 6 {
			t.Errorf("%s: got %s", query, text)
		}
	}
}

func TestLongPollEndsInTime(t *testing.T) {
	f := newFake()
	h := start(t, f)
	f.put(api.Operation{Meta: api.Meta{ID: "op"}, State: api.OperationRunning, Changes: 5})
	resp, text := h.do("GET", "/v1/operations/op?wait=1&changes=5", "")
	if resp.StatusCode != http.StatusOK || decode[api.Operation](t, text).Changes != 5 {
		t.Errorf("got %s %s", resp.Status, text)
	}
}

func TestStopEndsLongPolls(t *testing.T) {
	f := newFake()
	h := start(t, f)
	f.put(api.Operation{Meta: api.Meta{ID: "op"}, State: api.OperationRunning, Changes: 5})
	f.whenWaited(h.stop)
	begun := time.Now()
	resp, _ := h.do("GET", "/v1/operations/op?wait=60&changes=5", "")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("got %s", resp.Status)
	}
	h.ended()
	if time.Since(begun) > 30*time.Second { // half of what was asked for
		t.Errorf("stopping took %s", time.Since(begun))
	}
}

func TestIfMatchIsHonouredOrRefused(t *testing.T) {
	f := newFake()
	f.add("default", "web", 7)
	h := start(t, f)
	patch := `{"spec":{"resources":{"cpus":2,"memory":null},"env":{"A":null},"ulimits":{"nofile":null}},"labels":{"a":null}}`
	resp, text := h.do("PATCH", "/v1/instances/web", patch, "If-Match", `"7"`, "Content-Type", "application/merge-patch+json")
	if resp.StatusCode != http.StatusAccepted || f.lastPatch != patch {
		t.Errorf("got %s %s, patch %s", resp.Status, text, f.lastPatch)
	}
	if p := h.fails("PATCH", "/v1/instances/web", patch, "If-Match", `"6"`); p.Status != 412 || p.Code != api.CodeConflict {
		t.Errorf("stale: got %d %s", p.Status, p.Code)
	}
	for _, tag := range []string{`7`, `W/"7"`, `"7", "8"`, `"x"`, `"0"`} {
		if p := h.fails("PATCH", "/v1/instances/web", patch, "If-Match", tag); p.Status != 400 || p.Field != "If-Match" {
			t.Errorf("%s: got %d at %q", tag, p.Status, p.Field)
		}
	}
	for path, body := range map[string]string{"/v1/instances/web/start": "{}", "/v1/instances": `{"name":"a","spec":{"image":"base"}}`} {
		if p := h.fails("POST", path, body, "If-Match", `"7"`); p.Code != api.CodeUnsupported {
			t.Errorf("%s: got %+v", path, p)
		}
	}
}

func TestOtherConflictsStayConflicts(t *testing.T) {
	f := newFake()
	f.add("default", "web", 7)
	f.failWith = api.Errorf(api.CodeConflict, "it runs")
	h := start(t, f)
	if p := h.fails("PATCH", "/v1/instances/web", `{}`, "If-Match", `"7"`); p.Status != 409 {
		t.Errorf("got %d", p.Status)
	}
}

func TestPatchesAreValidated(t *testing.T) {
	f := newFake()
	f.add("default", "web", 7)
	h := start(t, f)
	for patch, field := range map[string]string{
		`{"spec":{"memory":1}}`:                   "spec.memory",
		`{"spec":{"resources":{"cpus":-1}}}`:      "spec.resources.cpus",
		`{"status":{"phase":"running"}}`:          "status",
		`{"name":"other"}`:                        "name",
		`{"spec":{"mounts":[{"hostPath":"/x"}]}}`: "spec.mounts[0]",
		`[]`: "",
	} {
		if p := h.fails("PATCH", "/v1/instances/web", patch); p.Status != 400 || p.Field != field {
			t.Errorf("%s: got %d at %q: %s", patch, p.Status, p.Field, p.Detail)
		}
	}
}

func TestIdempotencyKeyReachesTheBackend(t *testing.T) {
	f := newFake()
	h := start(t, f)
	h.do("POST", "/v1/instances/web/stop", "", "Idempotency-Key", "key-one")
	if !strings.Contains(f.lastContext, "key-one") {
		t.Errorf("the context carries no key: %s", f.lastContext)
	}
	if p := h.fails("POST", "/v1/instances/web/stop", "", "Idempotency-Key", strings.Repeat("k", 300)); p.Field != "Idempotency-Key" {
		t.Errorf("a key of 300 bytes: got %+v", p)
	}
}
