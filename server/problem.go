package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
)

// Problem is an api.Error as it is sent: RFC 9457 problem details, with the
// code, the field and the hint as extension members (§3.2).
type Problem struct {
	Type   string         `json:"type" doc:"Always about:blank: the code tells the type"`
	Title  string         `json:"title" doc:"Text of the HTTP status" example:"Not Found"`
	Status int            `json:"status" doc:"The HTTP status" example:"404"`
	Detail string         `json:"detail" doc:"What was tried, on what, and why it failed" example:"instance \"web\" does not exist"`
	Code   api.Code       `json:"code" enum:"invalid,unauthorized,forbidden,not-found,exists,conflict,busy,in-use,unsupported,no-space,no-resources,unavailable,timeout,cancelled,corrupt,internal" doc:"Stable reason; switch on this"`
	Field  string         `json:"field,omitempty" doc:"Path of the field at fault, like spec.resources.memory"`
	Hint   string         `json:"hint,omitempty" doc:"The way out"`
	Errors []ProblemField `json:"errors,omitempty" doc:"Every field at fault, where the input was refused as a whole"`

	cause error
}

// ProblemField is one of several things wrong with an input.
type ProblemField struct {
	Field  string `json:"field,omitempty"`
	Detail string `json:"detail"`
}

func (p *Problem) Error() string { return p.Detail }

func (p *Problem) Unwrap() error { return p.cause }

// GetStatus makes Problem a huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType makes Problem a huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return problemType }

const problemType = "application/problem+json"

// problemOf turns an error of the layers below into what is sent.
func problemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge()
	}
	e := api.AsError(err)
	if e.Code == api.CodeInternal {
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			e = api.Errorf(api.CodeTimeout, "%w", err)
		case errors.Is(err, context.Canceled):
			e = api.Errorf(api.CodeUnavailable, "the request ended before its work did: %w", err)
		}
	}
	return withStatus(e, e.Code.Status())
}

// withStatus is for errors whose HTTP status says more than their code does.
func withStatus(e *api.Error, status int) *Problem {
	return &Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status,
		Detail: e.Message, Code: e.Code, Field: e.Field, Hint: e.Hint, cause: e,
	}
}

func tooLarge() *Problem {
	return withStatus(api.Errorf(api.CodeInvalid, "the request's body is larger than %s", api.Bytes(maxJSON)),
		http.StatusRequestEntityTooLarge)
}

// write sends the problem without going through huma.
func (p *Problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", problemType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

// fieldNoise are the prefixes by which huma tells where an input was; the
// names of fields are clear without.
var fieldNoise = []string{"body.", "query.", "path.", "header."}

// humaProblem makes huma's own errors (input that fails validation, bodies
// it can't read) look like all others.
func humaProblem(status int, msg string, errs ...error) huma.StatusError {
	var fields []ProblemField
	for _, err := range errs {
		if p, ok := errors.AsType[*Problem](err); ok {
			return p
		}
		if d, ok := errors.AsType[*huma.ErrorDetail](err); ok {
			// The value is left out: it may be a password.
			fields = append(fields, ProblemField{Field: fieldName(d.Location), Detail: d.Message})
		} else if err != nil {
			fields = append(fields, ProblemField{Detail: err.Error()})
		}
	}
	code := api.CodeInvalid
	switch {
	case status == http.StatusUnprocessableEntity:
		status = http.StatusBadRequest
	case status == http.StatusRequestEntityTooLarge:
		return tooLarge()
	case status >= http.StatusInternalServerError:
		code = api.CodeInternal
	}
	e := api.Errorf(code, "%s", msg)
	if len(fields) > 0 {
		e = fieldError(code, fields)
	}
	p := withStatus(e, status)
	if len(fields) > 1 {
		p.Errors = fields
	}
	return p
}

func fieldError(code api.Code, fields []ProblemField) *api.Error {
	first := fields[0]
	text := first.Detail
	if first.Field != "" {
		text = first.Field + ": " + text
	}
	if n := len(fields) - 1; n > 0 {
		text = fmt.Sprintf("%s (and %d more)", text, n)
	}
	return api.Errorf(code, "%s", text).WithField(first.Field)
}

func fieldName(location string) string {
	for _, p := range fieldNoise {
		if rest, ok := strings.CutPrefix(location, p); ok {
			return rest
		}
	}
	if location == "body" {
		return ""
	}
	return location
}

// The hooks of huma are variables of its package; they are the documented
// way to replace its errors and to match names of fields exactly.
func init() {
	huma.NewError = humaProblem
	huma.ValidateStrictCasing = true
}
