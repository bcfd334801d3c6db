package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var files = []check{
	{"making what exists", func(dir string) (string, error) {
		name, err := write(dir, "f", "x")
		if err != nil {
			return "", err
		}
		_, err = unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		return fails(err)
	}},
	{"a replaced file keeps its readers", replaced},
	{"a removed file keeps its content", removed},
	{"hard links count", func(dir string) (string, error) {
		name, err := write(dir, "f", "x")
		if err != nil {
			return "", err
		}
		if err := os.Link(name, name+"2"); err != nil {
			return "", err
		}
		st, err := stat(name)
		return fmt.Sprint(st.Nlink), err
	}},
	{"links in a circle", func(dir string) (string, error) {
		if err := os.Symlink("b", dir+"/a"); err != nil {
			return "", err
		}
		if err := os.Symlink("a", dir+"/b"); err != nil {
			return "", err
		}
		_, err := stat(dir + "/a")
		return fails(err)
	}},
	{"longest name", func(dir string) (string, error) {
		if _, err := write(dir, strings.Repeat("n", 255), ""); err != nil {
			return "", err
		}
		_, err := write(dir, strings.Repeat("n", 256), "")
		return fails(err)
	}},
	{"names differ by case", func(dir string) (string, error) {
		if _, err := write(dir, "name", ""); err != nil {
			return "", err
		}
		_, err := stat(dir + "/NAME")
		return fails(err)
	}},
	{"a hole takes no space", func(dir string) (string, error) {
		name, err := write(dir, "f", "")
		if err != nil {
			return "", err
		}
		if err := os.Truncate(name, 64<<20); err != nil {
			return "", err
		}
		st, err := stat(name)
		return fmt.Sprintf("%d bytes, small: %v", st.Size, st.Blocks*512 < 1<<20), err
	}},
	{"a hole is punched", punched},
	{"appending writers don't overwrite", appending},
	{"a nameless file gets a name", nameless},
	{"extended attributes", func(dir string) (string, error) {
		name, err := write(dir, "f", "")
		if err != nil {
			return "", err
		}
		if err := unix.Setxattr(name, "user.probe", []byte("value"), 0); err != nil {
			return "", err
		}
		b := make([]byte, 64)
		n, err := unix.Getxattr(name, "user.probe", b)
		return string(b[:max(n, 0)]), err
	}},
	{"file capabilities", fileCapabilities},
	{"ownership can be given away", func(dir string) (string, error) {
		name, err := write(dir, "f", "")
		if err != nil {
			return "", err
		}
		if err := os.Chown(name, 1234, 4321); err != nil {
			return "", err
		}
		st, err := stat(name)
		return fmt.Sprintf("%d:%d", st.Uid, st.Gid), err
	}},
	{"a change of owner takes the set-user-ID bit", func(dir string) (string, error) {
		name, err := write(dir, "f", "")
		if err != nil {
			return "", err
		}
		if err := errors.Join(unix.Chmod(name, 0o4755), os.Chown(name, 1, 1)); err != nil {
			return "", err
		}
		st, err := stat(name)
		return fmt.Sprintf("%#o", st.Mode&0o7777), err
	}},
	{"times to the nanosecond", func(dir string) (string, error) {
		name, err := write(dir, "f", "")
		if err != nil {
			return "", err
		}
		if err := os.Chtimes(name, time.Unix(1, 1), time.Unix(1234567890, 123456789)); err != nil {
			return "", err
		}
		st, err := stat(name)
		return fmt.Sprintf("%d.%d", st.Mtim.Sec, st.Mtim.Nsec), err
	}},
	{"locks keep others out", locked},
	{"a directory that isn't empty", func(dir string) (string, error) {
		if err := os.MkdirAll(dir+"/d/e", 0o755); err != nil {
			return "", err
		}
		return fails(unix.Rmdir(dir + "/d"))
	}},
	{"a directory into itself", func(dir string) (string, error) {
		if err := os.MkdirAll(dir+"/d/e", 0o755); err != nil {
			return "", err
		}
		return fails(unix.Rename(dir+"/d", dir+"/d/e/f"))
	}},
	{"two names are exchanged", func(dir string) (string, error) {
		a, err := write(dir, "a", "1")
		if err != nil {
			return "", err
		}
		b, err := write(dir, "b", "2")
		if err != nil {
			return "", err
		}
		if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
			return "", err
		}
		text, err := os.ReadFile(a)
		return string(text), err
	}},
	{"a thousand files are listed", func(dir string) (string, error) {
		for i := range 1000 {
			if _, err := write(dir, fmt.Sprint(i), ""); err != nil {
				return "", err
			}
		}
		es, err := os.ReadDir(dir)
		if err != nil {
			return "", err
		}
		return count(len(es))
	}},
	{"changes are told", watched},
	{"a named pipe", func(dir string) (string, error) {
		if err := unix.Mkfifo(dir+"/p", 0o600); err != nil {
			return "", err
		}
		st, err := stat(dir + "/p")
		return fmt.Sprintf("%#o", st.Mode), err
	}},
	{"a device node", func(dir string) (string, error) {
		return fails(unix.Mknod(dir+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	}},
	{"mounting", func(dir string) (string, error) {
		if err := unix.Mount("probe", dir, "tmpfs", 0, ""); err != nil {
			return "", err
		}
		return fails(unix.Unmount(dir, 0))
	}},
	{"a shared mapping reaches the file", mapped},
	{"copying within the kernel", copied},
}

func write(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

func stat(path string) (st unix.Stat_t, err error) {
	err = unix.Stat(path, &st)
	return st, err
}

func replaced(dir string) (string, error) {
	name, err := write(dir, "f", "old")
	if err != nil {
		return "", err
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	other, err := write(dir, "g", "new")
	if err != nil {
		return "", err
	}
	if err := os.Rename(other, name); err != nil {
		return "", err
	}
	was, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	now, err := os.ReadFile(name)
	return string(was) + ", then " + string(now), err
}

func removed(dir string) (string, error) {
	name, err := write(dir, "f", "content")
	if err != nil {
		return "", err
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := os.Remove(name); err != nil {
		return "", err
	}
	text, err := io.ReadAll(f)
	return string(text), err
}

func punched(dir string) (string, error) {
	name, err := write(dir, "f", strings.Repeat("x", 64<<10))
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192); err != nil {
		return "", err
	}
	b := make([]byte, 3)
	if _, err := f.ReadAt(b, 4095); err != nil {
		return "", err
	}
	return fmt.Sprintf("%q", b), nil
}

func appending(dir string) (string, error) {
	name, err := write(dir, "f", "")
	if err != nil {
		return "", err
	}
	for range 2 {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := f.WriteString("one"); err != nil {
			return "", err
		}
	}
	b, err := os.ReadFile(name)
	return string(b), err
}

func nameless(dir string) (string, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("text")); err != nil {
		return "", err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/f", unix.AT_SYMLINK_FOLLOW); err != nil {
		return "", err
	}
	b, err := os.ReadFile(dir + "/f")
	return string(b), err
}

func fileCapabilities(dir string) (string, error) {
	name, err := write(dir, "f", "")
	if err != nil {
		return "", err
	}
	// struct vfs_cap_data of version 2 (capabilities(7)): CAP_NET_RAW.
	data := []byte{0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	return fails(unix.Setxattr(name, "security.capability", data, 0))
}

func locked(dir string) (string, error) {
	name, err := write(dir, "f", "")
	if err != nil {
		return "", err
	}
	a, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer a.Close()
	b, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer b.Close()
	if err := unix.Flock(int(a.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	return fails(unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

func watched(dir string) (string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE); err != nil {
		return "", err
	}
	if _, err := write(dir, "f", ""); err != nil {
		return "", err
	}
	n, err := unix.Read(fd, make([]byte, 4096))
	if err != nil {
		return "", err
	}
	return is(n > 0)
}

func mapped(dir string) (string, error) {
	name, err := write(dir, "f", "abc")
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 3, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return "", err
	}
	m[1] = 'B'
	if err := unix.Munmap(m); err != nil {
		return "", err
	}
	b, err := os.ReadFile(name)
	return string(b), err
}

func copied(dir string) (string, error) {
	name, err := write(dir, "f", "content")
	if err != nil {
		return "", err
	}
	from, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer from.Close()
	to, err := os.Create(dir + "/g")
	if err != nil {
		return "", err
	}
	defer to.Close()
	n, err := unix.CopyFileRange(int(from.Fd()), nil, int(to.Fd()), nil, 100, 0)
	if err != nil {
		return "", err
	}
	return count(n)
}
