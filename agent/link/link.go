// Package link makes connections over a byte channel that has none: a serial
// port, a virtio port or a pair of FIFOs, on which either side may have
// died, begun anew, or left half a message. Frames carry the number of their
// connection and a check sum and are delimited (RFC 1662 in spirit), so that
// both sides find each other again within one frame, and nothing of an
// earlier connection is taken for part of a later one.
//
// It is for one connection at a time: package agent multiplexes on it. Bytes
// that the channel accepted are assumed to arrive; a lost or damaged frame
// ends the connection.
package link
