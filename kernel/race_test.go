//go:build race

package kernel

// raced tells that the race detector watches.
const raced = true
