package mountfd

import (
	"errors"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links Target follows, as in path_resolution(7).
const maxLinks = 40

// Target opens the place below root that the absolute path name means to
// somebody whose root directory it is: symbolic links are followed inside
// root, and what is missing is made, also where a link points to. Missing are
// directories, and at the end a directory or an empty file.
//
// Each component is opened by itself below the descriptor of the one before,
// so that nobody who moves directories meanwhile can lead the way out.
func Target(root *os.File, name string, dir bool) (*os.File, error) {
	w := walk{root: root}
	defer w.reset()
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		next := todo[0]
		todo = todo[1:]
		switch next {
		case "", ".":
			continue
		case "..":
			w.up()
			continue
		}
		f, err := w.open(next, dir || !last(todo))
		if err != nil {
			return nil, &os.PathError{Op: "find", Path: name, Err: err}
		}
		target, isLink := readlink(f)
		if !isLink {
			w.down = append(w.down, f)
			continue
		}
		f.Close()
		if links++; links > maxLinks {
			return nil, &os.PathError{Op: "find", Path: name, Err: unix.ELOOP}
		}
		if path.IsAbs(target) {
			w.reset()
		}
		todo = slices.Concat(strings.Split(target, "/"), todo)
	}
	fd, err := unix.FcntlInt(w.here().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// last tells that only what means nothing is left of a path.
func last(todo []string) bool {
	return !slices.ContainsFunc(todo, func(c string) bool { return c != "" && c != "." })
}

// walk is the way from root to where we are.
type walk struct {
	root *os.File
	down []*os.File
}

func (w *walk) here() *os.File {
	if n := len(w.down); n > 0 {
		return w.down[n-1]
	}
	return w.root
}

func (w *walk) up() {
	if n := len(w.down); n > 0 {
		w.down[n-1].Close()
		w.down = w.down[:n-1]
	}
}

func (w *walk) reset() {
	for len(w.down) > 0 {
		w.up()
	}
}

// open opens one component, not following it, and makes it if it is missing.
func (w *walk) open(name string, dir bool) (*os.File, error) {
	const how = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS
	f, err := Open(w.here(), name, unix.O_PATH|unix.O_NOFOLLOW, how)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	at := int(w.here().Fd())
	if dir {
		err = unix.Mkdirat(at, name, 0o755)
	} else {
		var fd int
		fd, err = unix.Openat(at, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o644)
		if err == nil {
			unix.Close(fd)
		}
	}
	if err != nil && err != unix.EEXIST {
		return nil, err
	}
	return Open(w.here(), name, unix.O_PATH|unix.O_NOFOLLOW, how)
}

// readlink reads a symbolic link by its own descriptor.
func readlink(f *os.File) (string, bool) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", false
	}
	return string(buf[:n]), true
}
