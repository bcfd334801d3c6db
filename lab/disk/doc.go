// Package disk is a disk that can lose its power: an NBD server
// (github.com/NetworkBlockDevice/nbd, doc/proto.md) whose write cache is
// volatile, as that of a real disk is.
//
// What a machine writes is in the cache until it flushes, or writes with FUA
// (force unit access, which holds for that write alone). LosePower drops the
// cache: a machine that was told that its data is safe before that was told
// so by a flush, or not at all. Everything else about a machine's end leaves
// the cache as it is.
//
// A real disk may also have written any part of its cache by then, and this
// one has written all of it when the cache was full. Discarded blocks and
// blocks of zeros are written through, which a disk may do at any time.
//
// A Disk may be used by any number of goroutines; Serve answers the requests
// of one connection in their order. The client is a machine's monitor, and
// not trusted to be right: what it asks for is bounded and checked.
package disk
