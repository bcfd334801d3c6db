package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
	"github.com/cleave-project/cleave/keeper"
)

// follow opens a stream of text and reads it by line.
func (h *harness) follow(path string, header ...string) (*http.Response, *bufio.Scanner) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), 20*time.Second)
	h.Cleanup(cancel)
	resp, err := h.client.Do(h.request("GET", path, "", header...).WithContext(ctx))
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { resp.Body.Close() })
	return resp, bufio.NewScanner(resp.Body)
}

// upTo reads lines until one begins like this.
func (h *harness) upTo(sc *bufio.Scanner, prefix string) string {
	h.Helper()
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), prefix) {
			return sc.Text()
		}
	}
	h.Fatalf("no %q: %v", prefix, sc.Err())
	return ""
}

func TestEventsFlowAtOnce(t *testing.T) {
	f := newFake()
	next := make(chan api.Event)
	ended := make(chan struct{})
	f.events = func(ctx context.Context, since control.Since, yield func(api.Event) error) error {
		defer close(ended)
		for {
			select {
			case e := <-next:
				if err := yield(e); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	h := start(t, f, func(t *timeouts) { t.heartbeat = 50 * time.Millisecond })
	resp, sc := h.follow("/v1/events?project=default")
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type is %q", got)
	}
	next <- api.Event{ID: 4, Type: "instance.started", Project: "other"}
	next <- api.Event{ID: 5, Type: "instance.started", Project: "default", Name: "web"}
	if got := h.upTo(sc, "id:"); got != "id: 5" {
		t.Errorf("got %q", got)
	}
	if got := h.upTo(sc, "data:"); !strings.Contains(got, `"name":"web"`) {
		t.Errorf("got %q", got)
	}
	h.upTo(sc, ":") // the heartbeat
	next <- api.Event{ID: 6, Type: "image.pulled"}
	if got := h.upTo(sc, "id:"); got != "id: 6" {
		t.Errorf("got %q", got)
	}
	resp.Body.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the source outlives its reader")
	}
}

func TestEventsBeginWhereAsked(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		in   watchEvents
		want control.Since
		bad  bool
	}{
		{watchEvents{Follow: true}, control.Since{Follow: true}, false},
		{watchEvents{Since: "17"}, control.Since{ID: 17}, false},
		{watchEvents{Since: "10m"}, control.Since{Time: now.Add(-10 * time.Minute)}, false},
		{watchEvents{Since: "2026-01-01T00:00:00Z"}, control.Since{Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}, false},
		{watchEvents{Since: "17", LastEventID: "20"}, control.Since{ID: 20}, false},
		{watchEvents{Since: "-5"}, control.Since{}, true},
		{watchEvents{Since: "-10m"}, control.Since{}, true},
		{watchEvents{LastEventID: "10m"}, control.Since{}, true},
	} {
		got, err := parseSince(&tc.in, now)
		if (err != nil) != tc.bad {
			t.Errorf("%+v: %v", tc.in, err)
		}
		if d := cmp.Diff(tc.want, got); d != "" && !tc.bad {
			t.Errorf("%+v: %s", tc.in, d)
		}
	}
}

func TestEventsResumeAndEnd(t *testing.T) {
	f := newFake()
	f.events = func(_ context.Context, since control.Since, yield func(api.Event) error) error {
		if since.Follow {
			return errors.New("follow was not asked for")
		}
		for id := since.ID + 1; id <= 9; id++ {
			if err := yield(api.Event{ID: id}); err != nil {
				return err
			}
		}
		return nil
	}
	h := start(t, f)
	_, text := h.do("GET", "/v1/events?follow=false", "", "Last-Event-ID", "7")
	if got := strings.Count(text, "id: "); got != 2 || !strings.Contains(text, "id: 8\n") || !strings.HasSuffix(text, "\n\n") {
		t.Errorf("got %q", text)
	}
}

func TestStopEndsEvents(t *testing.T) {
	f := newFake()
	f.events = func(ctx context.Context, _ control.Since, _ func(api.Event) error) error {
		<-ctx.Done()
		return ctx.Err()
	}
	h := start(t, f)
	_, sc := h.follow("/v1/events")
	h.upTo(sc, "retry:")
	h.stop()
	for sc.Scan() {
	}
	if sc.Err() != nil {
		t.Errorf("the stream ends with %v", sc.Err())
	}
	h.ended()
}

func TestLogsFollow(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	next := make(chan string)
	var got keeper.LogOptions
	f.logs = func(ctx context.Context, opts keeper.LogOptions, yield func(keeper.LogEntry) error) error {
		got = opts
		for text := range next {
			if err := yield(keeper.LogEntry{Stream: "stdout", Data: []byte(text)}); err != nil {
				return err
			}
		}
		return nil
	}
	h := start(t, f)
	_, sc := h.follow("/v1/instances/web/logs?follow=true&tail=5&since=2026-01-01T00:00:00Z")
	for _, text := range []string{"one\n", "two\xff\n"} {
		next <- text
		var e keeper.LogEntry
		if !sc.Scan() || json.Unmarshal(sc.Bytes(), &e) != nil || string(e.Data) != text {
			t.Errorf("got %q, %v", sc.Text(), sc.Err())
		}
	}
	close(next)
	if sc.Scan() || sc.Err() != nil {
		t.Errorf("after the end: %q, %v", sc.Text(), sc.Err())
	}
	if !got.Follow || got.Tail != 5 || got.Since.Year() != 2026 {
		t.Errorf("options are %+v", got)
	}
}

func TestLogTailOfNothingIsWhatIsNew(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		in   readLogs
		want keeper.LogOptions
	}{
		{readLogs{Tail: -1}, keeper.LogOptions{}},
		{readLogs{Tail: 3, Follow: true}, keeper.LogOptions{Tail: 3, Follow: true}},
		{readLogs{Tail: 0, Follow: true}, keeper.LogOptions{Since: now, Follow: true}},
		{readLogs{Tail: -1, Since: "1h"}, keeper.LogOptions{Since: now.Add(-time.Hour)}},
	} {
		got, err := logOptions(&tc.in, now)
		if err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%+v: %s", tc.in, d)
		}
	}
}

func TestBrokenLogIsNoShortLog(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	f.logs = func(_ context.Context, _ keeper.LogOptions, yield func(keeper.LogEntry) error) error {
		_ = yield(keeper.LogEntry{Stream: "stdout", Data: []byte("one")})
		return api.Errorf(api.CodeCorrupt, "the log is damaged")
	}
	h := start(t, f)
	resp, err := h.client.Do(h.request("GET", "/v1/instances/web/logs", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err == nil || !strings.Contains(string(p), `"error":{"code":"corrupt"`) {
		t.Errorf("got %q, %v", p, err)
	}
	if p := h.fails("GET", "/v1/instances/none/logs", ""); p.Status != 404 {
		t.Errorf("no such instance: %+v", p)
	}
}

func TestReaderThatTakesNothingIsDropped(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	ended := make(chan struct{})
	f.logs = func(_ context.Context, _ keeper.LogOptions, yield func(keeper.LogEntry) error) error {
		defer close(ended)
		for {
			if err := yield(keeper.LogEntry{Data: make([]byte, 32<<10)}); err != nil {
				return err
			}
		}
	}
	h := start(t, f, func(t *timeouts) { t.write = 2 * time.Second })
	h.follow("/v1/instances/web/logs")
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the log goes on")
	}
}

func TestImageImportStreamsItsBody(t *testing.T) {
	h := start(t, newFake())
	body := bytes.NewReader(make([]byte, 8<<20)) // more than JSON may have
	req, _ := http.NewRequest("POST", h.base+"/v1/images/import?name=a", io.NopCloser(body))
	resp, err := h.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, _ := io.ReadAll(resp.Body)
	if im := decode[api.Image](t, string(p)); im.Size != 8<<20 || im.Names[0] != "a" {
		t.Errorf("got %s %s", resp.Status, p)
	}
}

func TestBrokenExportIsNoShortArchive(t *testing.T) {
	f := newFake()
	h := start(t, f)
	for _, size := range []int{0, 100, 200 << 10} {
		f.exporter = func(w io.Writer) error { _, err := w.Write(make([]byte, size)); return err }
		for _, path := range []string{"/v1/image/export?ref=a/b:c&format=tar", "/v1/instances/web/export?format=ova"} {
			if resp, text := h.do("GET", path, ""); resp.StatusCode != 200 || len(text) != size {
				t.Errorf("%s: %d bytes: %s, got %d", path, size, resp.Status, len(text))
			}
		}
		f.exporter = func(w io.Writer) error {
			_, _ = w.Write(make([]byte, size))
			return api.Errorf(api.CodeNoSpace, "no space")
		}
		resp, err := h.client.Do(h.request("GET", "/v1/image/export?ref=a", ""))
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if small := size <= pieceSize; small && (resp.StatusCode != 507 || !strings.Contains(string(p), "no-space")) || !small && err == nil {
			t.Errorf("failing after %d bytes: %s %v", size, resp.Status, err)
		}
	}
}

// stepping is a body that comes in pieces with pauses between.
func stepping(pieces int, pause time.Duration) io.Reader {
	r, w := io.Pipe()
	go func() {
		for range pieces {
			time.Sleep(pause)
			if _, err := w.Write([]byte(" ")); err != nil {
				return
			}
		}
		w.Close()
	}()
	return r
}

func TestSlowBodiesAreForStreamsOnly(t *testing.T) {
	h := start(t, newFake(), func(t *timeouts) { t.body = 100 * time.Millisecond })
	for path, want := range map[string]int{"/v1/images/import": 200, "/v1/images/pull": http.StatusRequestTimeout} {
		var resp *http.Response
		var err error
		// A client that still writes when it is refused may miss the reason.
		for range 20 {
			req, _ := http.NewRequest("POST", h.base+path, stepping(5, 60*time.Millisecond))
			req.Header.Set("Content-Type", "application/json")
			if resp, err = h.client.Do(req); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// An upload that is refused gets its reason, though most of it was never read.
func TestRefusedUploadSaysWhy(t *testing.T) {
	b := &guestBackend{fake: newFake(), socket: "/nonexistent"}
	h := start(t, b)
	for range 5 {
		req, _ := http.NewRequest("PUT", h.base+"/v1/instances/web/files?path=/", io.LimitReader(zeros{}, 64<<20))
		resp, err := h.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 409 || !strings.Contains(string(p), "does not run") {
			t.Errorf("got %s %s", resp.Status, p)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
