// Package transfer turns local files into tar archives for a guest, and the
// archives that a guest sends into local files.
//
// What a guest sends is hostile input. Nothing is written outside the place
// that the user named: every name must lie below the one that was asked for,
// no path is resolved through a symbolic link, devices are left out, and
// set-user-ID bits are dropped. Files appear whole or not at all.
package transfer
