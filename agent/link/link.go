// Package link makes connections over a byte channel that has none: a serial
// port, a virtio port or a pair of FIFOs, on which either side may have
// died, begun anew, or left half a message. Frames carry the number of their
// session and a check sum and are delimited (RFC 1662 in spirit), so that
// both sides find each other again within one frame, and nothing of an
// earlier session is taken for part of a later one.
//
// The host opens a Session and connections in it, any number at once; the
// guest has a Listener, which outlives the host's sessions. A new session
// ends the one before. Bytes that the channel accepted are assumed to arrive;
// a lost or damaged frame ends the session.
//
// Neither side trusts the other to read: what is on its way in a connection
// is bounded by a window, so that a side always reads its channel, buffers no
// more than the window for each connection, and no connection that isn't read
// holds up another. No call but Accept, NewSession, Read and Write waits for
// the other side, and these end with their deadline or context, and by Close.
package link
