// Package api is the contract of Cleave: the resource types that users write
// and read, their validation, and the errors that every layer speaks. It has
// no behaviour and imports nothing of the rest, so that the daemon, the
// client and the CLI agree by construction.
//
// Every resource is {meta, spec, status}: meta names it, spec is what the
// user wants, status is how far the host has come. Names are unique inside a
// project. Sizes are bytes; times are RFC 3339 in UTC; durations are whole
// seconds where a field name ends in Seconds. Struct tags other than json
// (doc, enum, pattern, minimum, ...) are read by the server to generate the
// OpenAPI document and to validate input; cross-field rules are in Validate
// methods.
package api

// DefaultProject is the project of a resource that names none.
const DefaultProject = "default"
