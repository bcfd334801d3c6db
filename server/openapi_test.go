package server

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// contract is every route that clients rely on.
const contract = `
GET /v1/host
GET /v1/host/doctor
GET POST /v1/instances
GET PATCH DELETE /v1/instances/{name}
POST /v1/instances/{name}/rename
POST /v1/instances/{name}/attach
POST /v1/instances/{name}/detach
POST /v1/instances/{name}/start
POST /v1/instances/{name}/stop
POST /v1/instances/{name}/restart
POST /v1/instances/{name}/pause
POST /v1/instances/{name}/resume
POST /v1/instances/{name}/exec
POST /v1/instances/{name}/console
POST /v1/instances/{name}/copy
POST /v1/instances/{name}/vnc
GET /v1/instances/{name}/screenshot
GET /v1/instances/{name}/export
GET /v1/streams/{ticket}
GET PUT HEAD /v1/instances/{name}/files
GET /v1/instances/{name}/logs
GET /v1/instances/{name}/stats
GET /v1/stats
GET /v1/images
POST /v1/images/pull
POST /v1/images/build
POST /v1/images/import
POST /v1/images/prune
GET DELETE /v1/image
GET /v1/image/export
GET POST /v1/kernels
POST /v1/kernels/fetch
POST /v1/kernels/import
GET DELETE /v1/kernels/{name}
POST /v1/kernels/{name}/default
GET POST /v1/pools
GET DELETE /v1/pools/{name}
GET POST /v1/volumes
GET PATCH DELETE /v1/volumes/{name}
GET POST /v1/networks
GET PATCH DELETE /v1/networks/{name}
GET /v1/operations
GET /v1/operations/{id}
POST /v1/operations/{id}/cancel
GET /v1/events
GET POST /v1/tokens
DELETE /v1/tokens/{name}
`

// document is the served document, decoded without huma's types.
func document(t *testing.T) map[string]any {
	t.Helper()
	h := start(t, newFake())
	resp, text := h.do("GET", "/openapi.json", "")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("got %s %s", resp.Status, resp.Header)
	}
	return decode[map[string]any](t, text)
}

func TestDocumentHasEveryRoute(t *testing.T) {
	doc := document(t)
	paths := doc["paths"].(map[string]any)
	seen := 0
	for line := range strings.Lines(strings.TrimSpace(contract)) {
		f := strings.Fields(line)
		path, methods := f[len(f)-1], f[:len(f)-1]
		item, _ := paths[path].(map[string]any)
		for _, m := range methods {
			if item[strings.ToLower(m)] == nil {
				t.Errorf("%s %s is missing", m, path)
			}
		}
		if len(item) != len(methods) {
			t.Errorf("%s has more methods than the contract names", path)
		}
		seen++
	}
	if seen != len(paths) {
		t.Errorf("the document has %d paths, the contract %d", len(paths), seen)
	}
}

func TestDocumentIsSound(t *testing.T) {
	doc := document(t)
	if v := doc["openapi"]; v != "3.1.0" {
		t.Errorf("version is %v", v)
	}
	info := doc["info"].(map[string]any)
	if info["version"] != "1.2.3" || info["title"] == "" {
		t.Errorf("info is %v", info)
	}
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	walk(doc, "", func(path string, node map[string]any) {
		if ref, ok := node["$ref"].(string); ok {
			if name, _ := strings.CutPrefix(ref, "#/components/schemas/"); schemas[name] == nil {
				t.Errorf("%s refers to %s, which is not there", path, ref)
			}
		}
	})
	ids := map[string]bool{}
	param := regexp.MustCompile(`\{(\w+)\}`)
	for path, item := range doc["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			op := op.(map[string]any)
			where := method + " " + path
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] {
				t.Errorf("%s: operation id %q is empty or not unique", where, id)
			}
			ids[id] = true
			if s, _ := op["summary"].(string); s == "" || strings.HasSuffix(s, ".") {
				t.Errorf("%s: summary is %q", where, s)
			}
			if tags, _ := op["tags"].([]any); len(tags) != 1 {
				t.Errorf("%s: tags are %v", where, tags)
			}
			if op["responses"].(map[string]any)["default"] == nil {
				t.Errorf("%s does not say how it fails", where)
			}
			var have []string
			for _, p := range asList(op["parameters"]) {
				p := p.(map[string]any)
				if p["description"] == nil {
					t.Errorf("%s: parameter %v has no description", where, p["name"])
				}
				if p["in"] == "path" {
					have = append(have, p["name"].(string))
				}
			}
			for _, m := range param.FindAllStringSubmatch(path, -1) {
				if !slices.Contains(have, m[1]) {
					t.Errorf("%s: parameter %s is not described", where, m[1])
				}
			}
		}
	}
}

func TestDocumentSaysThatSizesAreNumbersOrText(t *testing.T) {
	schemas := document(t)["components"].(map[string]any)["schemas"].(map[string]any)
	memory := schemas["Resources"].(map[string]any)["properties"].(map[string]any)["memory"].(map[string]any)
	var types []any
	for _, s := range asList(memory["anyOf"]) {
		types = append(types, s.(map[string]any)["type"])
	}
	if !slices.Equal(types, []any{"integer", "string"}) {
		t.Errorf("memory is %v", memory)
	}
}

// The examples in the document are requests that work.
func TestExamplesAreValid(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	h := start(t, f)
	for _, path := range []string{"/v1/instances", "/v1/instances/{name}/start", "/v1/instances/{name}/exec", "/v1/instances/{name}/console", "/v1/pools", "/v1/tokens"} {
		op := h.s.OpenAPI().Paths[path].Post
		body, err := json.Marshal(op.RequestBody.Content["application/json"].Example)
		if err != nil || string(body) == "null" {
			t.Errorf("%s has no example: %v", path, err)
			continue
		}
		if resp, text := h.do("POST", strings.Replace(path, "{name}", "web", 1), string(body)); resp.StatusCode >= 300 {
			t.Errorf("%s with its example %s: %s %s", path, body, resp.Status, text)
		}
	}
}

func asList(v any) []any { l, _ := v.([]any); return l }

func walk(v any, path string, visit func(string, map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		visit(path, v)
		for k, e := range v {
			walk(e, path+"/"+k, visit)
		}
	case []any:
		for _, e := range v {
			walk(e, path+"/*", visit)
		}
	}
}

func FuzzDecodeJSON(f *testing.F) {
	for _, s := range []string{`{"a":1,"a":2}`, `{"a":{"a":1},"b":[{"a":1},{"a":2}]}`, `["a","a"]`, `{"a":"a","b":"b"}`, `{"a":[`, `1 2`, `{"a":"\u0061","\u0061":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var v any
		err := decodeJSON(p, &v)
		if err != nil {
			return
		}
		// What is accepted has each name once: encoded again, it has as
		// many tokens as before.
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := tokens(t, p), tokens(t, again); a != b {
			t.Errorf("%q has %d tokens, and %d when encoded again", p, a, b)
		}
	})
}

func tokens(t *testing.T, p []byte) (n int) {
	dec := json.NewDecoder(bytes.NewReader(p))
	for {
		if _, err := dec.Token(); err == io.EOF {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
		n++
	}
}

// A merge patch is whatever a client sends: nothing of it may get the daemon
// down, and nothing may pass that the check for host paths doesn't see.
func FuzzMergePatch(f *testing.F) {
	for _, s := range []string{
		`{"spec":{"resources":{"memory":null}}}`, `{"spec":null}`, `{"labels":{"a":null}}`, `{"spec":{"mounts":null}}`,
		`{"spec":{"mounts":[{"hostPath":"/etc","target":"/mnt"}]}}`, `{"spec":{"mounts":[{"volume":"v","target":"/mnt"}]}}`, `{"spec":{"nics":[]}}`,
	} {
		f.Add([]byte(s))
	}
	b := newFake()
	b.add("default", "web", 1)
	s := New(Options{Backend: b, Log: quiet()})
	f.Fuzz(func(t *testing.T, p []byte) {
		b.lastPatch = ""
		// Asked directly, the caller is nobody, and so not root.
		r, _ := http.NewRequest("PATCH", "/v1/instances/web", bytes.NewReader(p))
		s.mux.ServeHTTP(&recorder{ResponseWriter: discard{http.Header{}}}, r)
		if b.lastPatch == "" {
			return
		}
		var v any
		if err := json.Unmarshal([]byte(b.lastPatch), &v); err != nil {
			t.Fatalf("the backend got %s", b.lastPatch)
		}
		for _, spec := range fold(v, "spec") {
			for _, mounts := range fold(spec, "mounts") {
				for _, m := range asList(mounts) {
					for _, path := range fold(m, "hostPath") {
						if path != nil && path != "" {
							t.Errorf("a host path got through: %s", b.lastPatch)
						}
					}
				}
			}
		}
	})
}

// fold finds the members of an object by name as encoding/json does: any case
// will do.
func fold(v any, name string) (found []any) {
	m, _ := v.(map[string]any)
	for k, e := range m {
		if strings.EqualFold(k, name) {
			found = append(found, e)
		}
	}
	return found
}
