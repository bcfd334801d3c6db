package api

import (
	"errors"
	"fmt"
)

// Code is a stable, machine-readable reason of a failure.
type Code string

// The codes. Clients may switch on them; texts may change, these don't.
const (
	CodeInvalid      Code = "invalid"      // the input can't be right: 400
	CodeUnauthorized Code = "unauthorized" // no or bad credentials: 401
	CodeForbidden    Code = "forbidden"    // known, but not allowed: 403
	CodeNotFound     Code = "not-found"    // the named thing isn't there: 404
	CodeExists       Code = "exists"       // the name is taken: 409
	CodeConflict     Code = "conflict"     // state or revision doesn't allow it now: 409
	CodeBusy         Code = "busy"         // another operation holds it: 409
	CodeInUse        Code = "in-use"       // something else needs it: 409
	CodeUnsupported  Code = "unsupported"  // this host or kind can't: 422
	CodeNoSpace      Code = "no-space"     // out of disk: 507
	CodeNoResources  Code = "no-resources" // over what the host has: 422
	CodeUnavailable  Code = "unavailable"  // a registry, the keeper, ... can't be reached: 503
	CodeTimeout      Code = "timeout"      // gave up waiting: 504
	CodeCancelled    Code = "cancelled"    // by the user: 409
	CodeCorrupt      Code = "corrupt"      // data failed verification: 422
	CodeInternal     Code = "internal"     // a bug or a broken host: 500
)

// Error is what every layer above the kernel returns for a failure that a
// user can act on. Message says what was tried, on what, and why it failed;
// Hint says the way out. It is served as application/problem+json (RFC 9457).
type Error struct {
	Code    Code   `json:"code"`
	Field   string `json:"field,omitempty" doc:"Path of the field at fault, like spec.resources.memory"`
	Message string `json:"detail"`
	Hint    string `json:"hint,omitempty"`
	cause   error
}

func (e *Error) Error() string {
	if e.Hint != "" {
		return e.Message + "; " + e.Hint
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an Error; a %w verb keeps its cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), cause: errors.Unwrap(err)}
}

// WithHint returns e with the way out.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// WithField returns e with the path of the field at fault.
func (e *Error) WithField(path string) *Error {
	c := *e
	c.Field = path
	return &c
}

// AsError finds the Error in err's chain; any other error becomes
// CodeInternal with its text, so that nothing is lost on the way out. When
// err wraps an Error with more context, that context stays in the message.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		return &Error{Code: CodeInternal, Message: err.Error(), cause: err}
	}
	if err == error(e) {
		return e
	}
	c := *e
	c.Message, c.Hint, c.cause = err.Error(), "", err
	return &c
}

// IsCode tells whether err carries the code.
func IsCode(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// Status is the HTTP status that a code is served with. The numbers are
// written out because net/http would be linked into the agent of every guest
// (5 MiB of binary, and private memory at start).
func (c Code) Status() int {
	switch c {
	case CodeInvalid:
		return 400
	case CodeUnauthorized:
		return 401
	case CodeForbidden:
		return 403
	case CodeNotFound:
		return 404
	case CodeExists, CodeConflict, CodeBusy, CodeInUse, CodeCancelled:
		return 409
	case CodeUnsupported, CodeNoResources, CodeCorrupt:
		return 422
	case CodeNoSpace:
		return 507
	case CodeUnavailable:
		return 503
	case CodeTimeout:
		return 504
	}
	return 500
}
