package control

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/cleave-project/cleave/api"
)

// merge applies a JSON merge patch (RFC 7386 §2) to v. Unknown fields are
// refused: a misspelt key must not look like a success.
func merge[T any](v *T, patch json.RawMessage) error {
	if len(patch) == 0 {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var doc, change any
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	if err := json.Unmarshal(patch, &change); err != nil {
		return api.Errorf(api.CodeInvalid, "the patch is not JSON: %w", err)
	}
	if b, err = json.Marshal(mergeValue(doc, change)); err != nil {
		return err
	}
	var n T
	if err := strict(b, &n); err != nil {
		return err
	}
	*v = n
	return nil
}

// mergeValue is MergePatch of RFC 7386 §2.
func mergeValue(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	result, ok := target.(map[string]any)
	if !ok {
		result = map[string]any{}
	}
	for k, v := range changes {
		if v == nil {
			delete(result, k)
		} else {
			result[k] = mergeValue(result[k], v)
		}
	}
	return result
}

// strict decodes JSON and refuses fields that v doesn't have.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var e *api.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	}
	return api.Errorf(api.CodeInvalid, "the input does not fit: %w", err)
}
