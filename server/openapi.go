package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
)

const apiDescription = `The interface of a Cleave host: everything that the command line does goes through it.

Over the unix socket the caller is known by its credentials: root, or a member of the group cleave. Over TCP every request carries a bearer token. What names a directory of the host is for root over the unix socket alone. A resource is {name, project, labels, revision, spec, status}; the project is chosen with ?project= and is "default" if it is left out. Names of fields are matched exactly, and unknown fields and query parameters are errors.

Long work answers 202 with an operation. Follow it at /v1/operations/{id}, or send ` + "`Prefer: wait=SECONDS`" + ` to get the answer once it has ended. Calls that start one accept an Idempotency-Key: repeating a call with the same key answers the first one's operation. Objects carry their revision as ETag; a change with If-Match fails with status 412 when the object has changed since.

Listings are pages: ask for more with ?cursor= and the answer's next. Failures are application/problem+json with a stable code, the field at fault and a hint.

A stream (exec, console) is a WebSocket opened with a ticket that works once, within 30 seconds. Its messages are binary; the first byte is the channel: 0 standard input, 1 standard output, 2 standard error, 3 control. Control messages are JSON: {"resize":{"cols":80,"rows":24}}, {"signal":"SIGINT"} and {"eof":true} from the client; the last message of all is {"exit":{"code":0}} or {"error":{...}} from the server.`

var tags = []*huma.Tag{
	{Name: "instances", Description: "Guests: make, change, start, stop and delete them"},
	{Name: "guests", Description: "Reach into a guest: commands, console, files, logs, counters"},
	{Name: "images", Description: "Read-only root file systems on this host"},
	{Name: "kernels", Description: "What boots images in machines: kernels of this host"},
	{Name: "storage", Description: "Pools and volumes"},
	{Name: "networks", Description: "Virtual switches"},
	{Name: "operations", Description: "Work in progress, and what happened"},
	{Name: "host", Description: "The daemon and its host"},
	{Name: "tokens", Description: "Access over TCP"},
}

// apiConfig leaves out what huma would add to every answer ($schema links)
// and its own routes: the document is served by us.
func apiConfig(version string) huma.Config {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	registry.RegisterTypeAlias(reflect.TypeFor[api.Bytes](), reflect.TypeFor[bytesSchema]())
	format := huma.Format{Marshal: encodeJSON, Unmarshal: decodeJSON}
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Cleave", Version: version, Description: apiDescription,
				License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Tags: tags,
			Components: &huma.Components{
				Schemas: registry,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token": {Type: "http", Scheme: "bearer", Description: "Over TCP only; see 'cleave token create'"},
				},
			},
			// The empty requirement stands for the unix socket.
			Security: []map[string][]string{{"token": {}}, {}},
		},
		Formats:                      map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
}

// bytesSchema is api.Bytes in the document: answers hold the number.
type bytesSchema int64

// Schema implements huma.SchemaProvider.
func (bytesSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		AnyOf: []*huma.Schema{
			{Type: huma.TypeInteger, Format: "int64"},
			{Type: huma.TypeString, Pattern: `^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT]([iI]?[bB]?)?|[bB])?\s*$`, PatternDescription: "a number with a unit, like 512MiB or 20GiB"},
		},
		Examples: []any{536870912, "512MiB"},
	}
}

func encodeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// decodeJSON is json.Unmarshal, but an object with the same name twice is an
// error: decoders differ in which of them they take, and so a check by one
// would not bind the other.
func decodeJSON(p []byte, v any) error {
	if _, generic := v.(*any); generic {
		// huma decodes into any first, to validate.
		if err := rejectDuplicates(json.NewDecoder(bytes.NewReader(p))); err != nil {
			return err
		}
	}
	return json.Unmarshal(p, v)
}

func rejectDuplicates(dec *json.Decoder) error {
	type level struct {
		names map[string]bool // nil in an array
		value bool            // a name has been read, its value comes next
	}
	var stack []level
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		top := len(stack) - 1
		switch t := tok.(type) {
		case json.Delim:
			switch t {
			case '{', '[':
				if top >= 0 {
					stack[top].value = false
				}
				stack = append(stack, level{})
				if t == '{' {
					stack[top+1].names = map[string]bool{}
				}
			default:
				stack = stack[:top]
			}
			continue
		case string:
			if top >= 0 && stack[top].names != nil && !stack[top].value {
				if stack[top].names[t] {
					return fmt.Errorf("the name %q is there twice in one object", t)
				}
				stack[top].names[t], stack[top].value = true, true
				continue
			}
		}
		if top >= 0 {
			stack[top].value = false
		}
	}
}

// patchSchema is the schema of a JSON merge patch (RFC 7396) of one type:
// nothing is required, and null takes a field back to its default and an entry
// out of a map.
func patchSchema(r huma.Registry, t reflect.Type) *huma.Schema {
	s := *r.Schema(t, false, "")
	s.Required = nil
	props := make(map[string]*huma.Schema, len(s.Properties))
	for name, p := range s.Properties {
		p := *p
		if ft := r.TypeFromRef; p.Ref != "" && ft(p.Ref) != nil {
			ro := p.ReadOnly
			p = *patchSchema(r, ft(p.Ref))
			p.ReadOnly = ro
		}
		if p.ReadOnly {
			continue
		}
		p.Nullable = p.Type != ""
		p.Default = nil
		if entry, ok := p.AdditionalProperties.(*huma.Schema); ok {
			e := *entry
			if ft := r.TypeFromRef; e.Ref != "" && ft(e.Ref) != nil {
				e = *patchSchema(r, ft(e.Ref))
			}
			e.Nullable = true
			e.PrecomputeMessages()
			p.AdditionalProperties = &e
		}
		props[name] = &p
	}
	s.Properties = props
	s.PrecomputeMessages()
	return &s
}

// mergePatch is a JSON merge patch of the labels and the spec of a resource
// whose spec is an S. It is validated like the resource, and handed on as it
// came.
type mergePatch[S any] struct{ raw json.RawMessage }

// UnmarshalJSON keeps the patch as it is.
func (m *mergePatch[S]) UnmarshalJSON(p []byte) error {
	m.raw = slices.Clone(p)
	return nil
}

// Schema implements huma.SchemaProvider.
func (m *mergePatch[S]) Schema(r huma.Registry) *huma.Schema {
	labels := &huma.Schema{
		Type: huma.TypeObject, Nullable: true, Description: "A null value removes the label",
		AdditionalProperties: &huma.Schema{Type: huma.TypeString, Nullable: true},
	}
	spec := patchSchema(r, reflect.TypeFor[S]())
	return &huma.Schema{
		Type:                 huma.TypeObject,
		AdditionalProperties: false,
		Properties:           map[string]*huma.Schema{"labels": labels, "spec": spec},
	}
}

// handleOpenAPI serves the document, which is made when it is first asked for.
func (s *Server) handleOpenAPI() http.HandlerFunc {
	document := sync.OnceValues(func() ([]byte, error) { return json.Marshal(s.api.OpenAPI()) })
	return func(w http.ResponseWriter, _ *http.Request) {
		doc, err := document()
		if err != nil {
			problemOf(err).write(w)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(doc)
	}
}
