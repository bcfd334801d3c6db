// Package server is the HTTP interface of the daemon: REST and JSON under
// /v1, described by the OpenAPI document that is generated from the types in
// package api and served at /openapi.json; docs/api.md is rendered from it.
//
// Who may call: over the unix socket, root and the members of one group,
// known by the peer credentials that the kernel recorded at connect; over
// TCP, whoever has a bearer token. What names a path of the host (a
// hostPath mount, a pool's source) is for root over the unix socket alone.
//
// Bodies of JSON are bounded and validated against the document before
// anything else sees them; names of fields are matched exactly. Whatever
// fails is application/problem+json (RFC 9457). A streamed answer that breaks
// after its first bytes is an aborted connection, never a short success.
//
// Everything here may be used from any goroutine. Requests run until they are
// done; when the context of Serve ends, long polls answer with what they have
// and streams are closed, other requests get a few seconds to finish.
package server

//go:generate go test -run TestReferenceIsCurrent . -update
