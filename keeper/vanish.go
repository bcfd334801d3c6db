package keeper

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// whenGone calls gone once the socket at path is no longer the one that was
// there at the call: nobody can reach it any more. Closing the file that it
// answers ends the watch.
func whenGone(path string, gone func()) (*os.File, error) {
	was, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	// A bound socket keeps its inode, so that its removal is no
	// IN_DELETE_SELF but a change of its count of links.
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB|unix.IN_MOVE_SELF); err != nil {
		unix.Close(fd)
		return nil, err
	}
	events := os.NewFile(uintptr(fd), "inotify")
	go func() {
		buf := make([]byte, 512)
		for {
			if _, err := events.Read(buf); err != nil {
				return
			}
			is, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(was, is) {
				gone()
				return
			}
		}
	}()
	return events, nil
}
