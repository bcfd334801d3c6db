package stack

import (
	"maps"
	"reflect"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
)

// text is a document for people; spec is of the type that the document's
// spec was made from, and tells which of its numbers are sizes.
func text(doc map[string]any, spec any) string {
	if fields, ok := doc["spec"].(map[string]any); ok {
		doc = maps.Clone(doc)
		doc["spec"] = withUnits(fields, reflect.TypeOf(spec))
	}
	b, err := output.MarshalYAML(doc)
	if err != nil {
		panic(err) // what came from JSON can be encoded
	}
	return string(b)
}

// withUnits returns the fields of a struct of type t with units on sizes.
func withUnits(fields map[string]any, t reflect.Type) map[string]any {
	out := maps.Clone(fields)
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		switch v := out[name].(type) {
		case float64:
			if t.Field(i).Type == reflect.TypeFor[api.Bytes]() {
				out[name] = api.Bytes(v).Exact()
			}
		case map[string]any:
			if inner := t.Field(i).Type; inner.Kind() == reflect.Struct {
				out[name] = withUnits(v, inner)
			}
		}
	}
	return out
}
