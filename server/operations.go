package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
)

// maxWait bounds how long a request may be held: proxies and clients give up
// at some time, and asking again costs little.
const maxWait = 10 * time.Minute

// Waiting are the requests that may wait for the operation that they start.
type Waiting struct {
	Prefer string `header:"Prefer" doc:"wait=SECONDS (RFC 7240 §4.3): answer when the operation has ended, or then" example:"wait=30"`
}

// wait reads the preference; like any preference, one that isn't understood
// is ignored (RFC 7240 §2).
func (w Waiting) wait() time.Duration {
	for p := range strings.FieldsFuncSeq(w.Prefer, func(r rune) bool { return r == ',' || r == ';' }) {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if !strings.EqualFold(strings.TrimSpace(k), "wait") {
			continue
		}
		if n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(v), `"`), 10, 31); err == nil {
			return min(time.Duration(n)*time.Second, maxWait)
		}
	}
	return 0
}

// started is the answer to what starts an operation.
type started struct {
	Status            int
	Location          string `header:"Location" doc:"Path of the operation"`
	PreferenceApplied string `header:"Preference-Applied" doc:"The wait that was honoured"`
	Body              *api.Operation
}

// accepted describes that answer.
func (s *Server) accepted(op huma.Operation) huma.Operation {
	op.DefaultStatus = http.StatusAccepted
	op.Responses = map[string]*huma.Response{
		"200": {Description: "The operation has ended, well or not", Content: map[string]*huma.MediaType{
			"application/json": {Schema: schemaOf[api.Operation](s)},
		}},
		"202": {Description: "The operation is under way"},
	}
	return op
}

func (s *Server) started(ctx context.Context, w Waiting, op *api.Operation, err error) (*started, error) {
	if err != nil {
		return nil, err
	}
	out := &started{Location: "/v1/operations/" + op.ID}
	if d := w.wait(); d > 0 {
		out.PreferenceApplied = fmt.Sprintf("wait=%d", int(d/time.Second))
		op = s.await(ctx, op, d)
	}
	out.Body, out.Status = op, http.StatusAccepted
	if op.Finished() {
		out.Status = http.StatusOK
	}
	return out, nil
}

// await follows op for at most d, and returns it as last seen.
func (s *Server) await(ctx context.Context, op *api.Operation, d time.Duration) *api.Operation {
	ctx, cancel := untilStop(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, d)
	defer cancel()
	for !op.Finished() && ctx.Err() == nil {
		now, err := s.backend.WaitOperation(ctx, op.ID, op.Changes)
		if err != nil {
			break
		}
		op = now
	}
	if now, err := s.backend.Operation(op.ID); err == nil {
		return now
	}
	return op
}

// OperationID are the requests about one operation.
type OperationID struct {
	Hostwide
	ID string `path:"id" doc:"ID of the operation"`
}

type listOperations struct {
	Listed
	Paged
	All bool `query:"all" doc:"Also those that have ended, as far as kept"`
}

type getOperation struct {
	OperationID
	Wait    int   `query:"wait" minimum:"0" maximum:"600" doc:"Seconds to wait for a change"`
	Changes int64 `query:"changes" default:"-1" minimum:"-1" doc:"Answer once the operation has more changes than this, or has ended; those of now if left out"`
}

type cancelOperation struct {
	OperationID
	Unconditional
}

func (s *Server) operationRoutes() {
	const tag = "operations"
	handle(s, route(tag, "list-operations", http.MethodGet, "/v1/operations", "List operations"),
		func(_ context.Context, in *listOperations) (*page[api.Operation], error) {
			ops, err := s.backend.Operations(in.project(), in.All)
			if err != nil {
				return nil, err
			}
			// IDs are random: by time, and by id within the same instant.
			return pageOf(ops, in.Paged, func(o *api.Operation) string {
				return o.Created.UTC().Format("20060102T150405.000000000") + "/" + o.ID
			})
		})
	get := route(tag, "get-operation", http.MethodGet, "/v1/operations/{id}", "Show an operation, or wait for its next change")
	get.Description = "With wait, a long poll: the answer comes when the operation has more than the given number of changes or has ended, or when the time is up."
	handle(s, get, s.getOperation)
	handle(s, route(tag, "cancel-operation", http.MethodPost, "/v1/operations/{id}/cancel", "Ask an operation to stop"),
		func(ctx context.Context, in *cancelOperation) (*object[api.Operation], error) {
			return objectOf(s.backend.CancelOperation(ctx, in.ID))
		})
}

func (s *Server) getOperation(ctx context.Context, in *getOperation) (*object[api.Operation], error) {
	op, err := s.backend.Operation(in.ID)
	if err != nil || in.Wait == 0 || op.Finished() {
		return objectOf(op, err)
	}
	changes := in.Changes
	if changes < 0 {
		changes = op.Changes
	}
	if op.Changes > changes {
		return objectOf(op, nil)
	}
	ctx, cancel := untilStop(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, time.Duration(in.Wait)*time.Second)
	defer cancel()
	now, err := s.backend.WaitOperation(ctx, in.ID, changes)
	if err != nil && (ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded)) {
		return objectOf(s.backend.Operation(in.ID)) // the time is up
	}
	return objectOf(now, err)
}
