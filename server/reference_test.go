package server

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/api.md anew")

const referencePath = "../docs/api.md"

// TestReferenceIsCurrent keeps docs/api.md true; 'go generate ./server'
// writes it.
func TestReferenceIsCurrent(t *testing.T) {
	want := reference(New(Options{Log: quiet()}).OpenAPI())
	if *update {
		if err := os.WriteFile(referencePath, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("docs/api.md is not what the routes say; run 'go generate ./server':\n%s", d)
	}
}

// reference renders the document for people.
func reference(doc *huma.OpenAPI) []byte {
	r := &renderer{doc: doc}
	r.line("# The API")
	r.line("<!-- Made from the OpenAPI document by 'go generate ./server'; don't edit. -->")
	r.line("%s", doc.Info.Description)
	r.line("The document itself is served at `/openapi.json`, the state of the daemon at `/healthz`, and metrics for Prometheus at `/metrics`.")
	for _, tag := range doc.Tags {
		r.line("## %s", capital(tag.Name))
		r.line("%s.", tag.Description)
		for _, o := range r.operations(tag.Name) {
			r.operation(o)
		}
	}
	r.line("## Types")
	schemas := doc.Components.Schemas.Map()
	for _, name := range slices.Sorted(maps.Keys(schemas)) {
		r.line("### %s", name)
		r.fields(schemas[name], "Field")
	}
	return append(bytes.TrimRight(r.out.Bytes(), "\n"), '\n')
}

type renderer struct {
	doc *huma.OpenAPI
	out bytes.Buffer
}

// line writes one block and the empty line after it.
func (r *renderer) line(format string, args ...any) { fmt.Fprintf(&r.out, format+"\n\n", args...) }

var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

func byMethod(p *huma.PathItem) map[string]*huma.Operation {
	return map[string]*huma.Operation{
		http.MethodGet: p.Get, http.MethodHead: p.Head, http.MethodPost: p.Post,
		http.MethodPut: p.Put, http.MethodPatch: p.Patch, http.MethodDelete: p.Delete,
	}
}

func (r *renderer) operations(tag string) (ops []*huma.Operation) {
	for _, path := range slices.Sorted(maps.Keys(r.doc.Paths)) {
		of := byMethod(r.doc.Paths[path])
		for _, m := range methods {
			if o := of[m]; o != nil && slices.Contains(o.Tags, tag) {
				ops = append(ops, o)
			}
		}
	}
	return ops
}

func (r *renderer) operation(o *huma.Operation) {
	r.line("### %s", o.Summary)
	r.line("`%s %s` (%s)", o.Method, o.Path, o.OperationID)
	if o.Description != "" {
		r.line("%s", o.Description)
	}
	if len(o.Parameters) > 0 {
		r.out.WriteString("| Parameter | In | Type | |\n|---|---|---|---|\n")
		for _, p := range o.Parameters {
			fmt.Fprintf(&r.out, "| `%s` | %s | %s | %s |\n", p.Name, p.In, typeName(p.Schema), cell(remarks(p.Description, p.Schema, p.Required)))
		}
		r.out.WriteString("\n")
	}
	if o.RequestBody != nil {
		for _, ct := range slices.Sorted(maps.Keys(o.RequestBody.Content)) {
			m := o.RequestBody.Content[ct]
			r.line("Body: %s%s", typeName(m.Schema), mediaType(ct))
			if m.Example != nil {
				if p, err := json.MarshalIndent(m.Example, "", "  "); err == nil {
					r.line("```json\n%s\n```", p)
				}
			}
		}
	}
	for _, status := range slices.Sorted(maps.Keys(o.Responses)) {
		if status != "default" {
			r.answer(status, o.Responses[status])
		}
	}
	r.out.WriteString("\n")
}

func (r *renderer) answer(status string, a *huma.Response) {
	text := fmt.Sprintf("- %s %s", status, a.Description)
	for _, ct := range slices.Sorted(maps.Keys(a.Content)) {
		text += ": " + typeName(a.Content[ct].Schema) + mediaType(ct)
	}
	if names := slices.Sorted(maps.Keys(a.Headers)); len(names) > 0 {
		text += "; headers `" + strings.Join(names, "`, `") + "`"
	}
	r.out.WriteString(text + "\n")
}

func mediaType(ct string) string {
	if ct == "application/json" {
		return ""
	}
	return " (" + ct + ")"
}

// fields is a table of an object's fields; those of objects without a name
// follow as a path.
func (r *renderer) fields(s *huma.Schema, head string) {
	if s.Description != "" {
		r.line("%s.", s.Description)
	}
	fmt.Fprintf(&r.out, "| %s | Type | |\n|---|---|---|\n", head)
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		fmt.Fprintf(&r.out, "| `%s` | %s | %s |\n", name, typeName(p), cell(remarks(p.Description, p, slices.Contains(s.Required, name) && !p.ReadOnly)))
	}
	r.out.WriteString("\n")
}

// typeName is a schema in few words.
func typeName(s *huma.Schema) string {
	switch {
	case s == nil:
		return "nothing"
	case s.Ref != "":
		name := s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]
		return fmt.Sprintf("[%s](#%s)", name, strings.ToLower(name))
	case len(s.AnyOf) > 0:
		return "bytes"
	case s.Type == huma.TypeArray:
		return "list of " + typeName(s.Items)
	case s.Type == huma.TypeObject && len(s.Properties) > 0:
		if spec := s.Properties["spec"]; spec != nil {
			return "merge patch of labels and spec"
		}
		return "object"
	case s.Type == huma.TypeObject:
		if e, ok := s.AdditionalProperties.(*huma.Schema); ok {
			return "map to " + typeName(e)
		}
		return "object"
	case s.Format == "date-time":
		return "time"
	case s.Format == "binary":
		return "bytes of a file"
	case s.ContentEncoding == "base64":
		return "base64"
	case s.Type == "":
		return "anything"
	}
	return s.Type
}

// remarks are a field's description and what its schema demands.
func remarks(text string, s *huma.Schema, required bool) string {
	var more []string
	if required {
		more = append(more, "required")
	}
	if s != nil && s.ReadOnly {
		more = append(more, "read only")
	}
	if s != nil && len(s.Enum) > 0 {
		var values []string
		for _, v := range s.Enum {
			values = append(values, fmt.Sprintf("`%v`", v))
		}
		more = append(more, "one of "+strings.Join(values, ", "))
	}
	if s != nil && s.Default != nil {
		more = append(more, fmt.Sprintf("default `%v`", s.Default))
	}
	if len(more) > 0 {
		text = strings.TrimSpace(text + " (" + strings.Join(more, "; ") + ")")
	}
	return text
}

// cell keeps text inside its cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(text)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
