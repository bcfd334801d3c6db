// Package agent is the protocol between the daemon and our process inside a
// guest, and the daemon's side of it. Package agent/guest is the other side.
//
// A connection is a byte stream of any kind (a unix socket into a container,
// a serial port or vsock into a machine). It begins with a versioned Hello
// from each side; then it is a yamux session in which the daemon opens one
// stream per request: a length-prefixed JSON header, then raw bytes whose
// framing the request's type defines. Connections are opened on demand and
// an idle guest has none.
//
// The guest is hostile: whatever comes from it is bounded in size, never
// used as a path on the host, and never waited for without a context.
package agent
