// Package arch holds the tests that keep the tree as docs/architecture.md
// draws it. It has no code of its own.
package arch
