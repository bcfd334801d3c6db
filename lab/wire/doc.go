// Package wire is the virtual wire between the hosts of a lab: a switch in
// this process, to which every host's network card is connected by a unix
// socket (QEMU's stream protocol: each frame behind its length).
//
// What goes from one host to another is subject to the Rule of that direction
// between those two: it can be cut, delayed, and dropped by chance. Frames
// keep their order in a direction, also when its delay changes. Whoever reads
// too slowly loses frames, as on a real switch, and holds up nobody.
//
// Addresses are learned from the frames of all hosts, so that what runs on a
// host may have addresses of its own, and move. All methods of a Switch may
// be called at the same time.
package wire
