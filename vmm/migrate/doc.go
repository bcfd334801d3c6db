// Package migrate moves a guest that runs from one monitor to another, over
// one or several streams: TLS with certificates of both sides, or connections
// that only this host's processes can make. It knows a guest as a Guest at the
// source and a Place at the destination, and neither KVM nor the monitor.
//
// # Frames
//
// All streams carry frames: a head of 24 bytes (kind, volume, two bytes of
// zero, the payload's length as uint32, offset and size as uint64, all little
// endian) and the payload. From the source come
//
//	hello    JSON, first on each stream: the protocol's version, the session,
//	         which stream of how many, and on the first one what the guest is
//	data     the payload is a volume's content at an offset
//	zero     size bytes of a volume at an offset are zero
//	sync     a round ends, which offset numbers: on every stream, and nobody
//	         reads on before it came on all. So what is sent twice arrives in
//	         order, on whichever streams
//	later    size bytes of a volume at an offset come when the guest runs
//	state    JSON of devices and processors, once, behind the last round
//	go       the guest is the destination's
//	abort    it isn't, and the payload says why
//
// and on the first stream from the destination welcome (to the hello), synced
// (to a sync, when all before it is written), ready (to the state), running
// (to go), and abort; where something comes later, want (size bytes of a volume
// at an offset are needed at once; from the state on), and whole (all of it is
// here). A volume is memory, or a disk that is mirrored. Payloads
// have at most 256 KiB (data), 64 KiB (hello, abort), 64 MiB (state). The
// destination takes each byte for a lie until it has looked: what is out of
// turn, too long, or outside of a volume ends the migration.
//
// # Who has the guest
//
// The source, which may give up, or be told to by an abort or the end of its
// streams, at any moment until it begins to send go. From then on it never lets
// the guest run by itself. With running the guest is gone; with an abort it is
// back, since a destination that says so hasn't run it and never will; with
// neither it is undecided (ErrUndecided), and stays paused.
//
// The destination lets the guest run only after go. Until ready the end of
// the streams ends it. From ready to go it can't know what the source has
// decided: if the streams end there without an abort, it is undecided too, and
// keeps the guest paused. It may still give up itself, and say so by an abort.
//
// # Memory that follows its guest
//
// With Options.PostCopy the guest goes on at the destination when what it has
// written in a round is still at the source: that is announced by later, and
// sent as data and zero behind running, what is wanted first, the rest on the
// streams but the first, each of which ends with a sync. A guest that needs
// what isn't there waits. Then each side has a part of what the guest is, and
// nobody but the source can bring it together: a link that breaks ends
// nothing. The source says hello once more (resume), with the session's name;
// the destination tells by later what it hasn't got, then welcome, whose offset
// is 1 if the guest has run; and the source goes on with go, which the
// destination heeds if it didn't hear the first one. The source lets the guest
// run again only if the destination says by an abort that it hasn't run it;
// after running an abort says that the guest has ended.
//
// # What can't be decided
//
// No protocol can spare them that (it is the problem of the two generals). Who
// can ask both, or can be sure that one is no more, settles it: tell first the
// one side to give the guest up, then the other to keep it. A destination that
// says it has aborted, and hasn't said that the guest is running, has not run
// it and never will.
package migrate
