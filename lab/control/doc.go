// Package control keeps a lab in a background process, and talks with it over
// a unix socket in the lab's directory.
//
// A connection carries one request, a JSON object, and its replies, a JSON
// object a line: what is done meanwhile, and last the result or an error. After
// a dial the connection is one to the host's agent (package agent).
//
// The process holds a lock on the lab's directory as long as it lives, so that
// what one that was killed left behind is told from what is in use. Its hosts
// end with it.
package control
