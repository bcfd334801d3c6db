package container

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// node is a character device in a guest's /dev.
type node struct {
	name         string
	major, minor uint32
}

var nodes = []node{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

// systemNodes are for system guests, where the host has them. What is done
// with them stays in the guest's own namespaces.
var systemNodes = []node{{"fuse", 10, 229}, {"net/tun", 10, 200}}

var links = [][2]string{
	{"ptmx", "pts/ptmx"},
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
}

// kit fills the small file system that setup takes a guest's devices and
// generated files from.
type kit struct {
	dir   *os.File
	owner int
	err   error
}

// makeKit makes it, owned by the guest's root. It belongs to the host's user
// namespace, which is why device nodes work in it.
func makeKit(spec *engine.Spec, hs []cgroup.Hierarchy) (*os.File, []setup.File, error) {
	// Room for what programs leave in /dev, and a bound for it.
	m, err := mountfd.New("tmpfs").String("source", "cleave").String("mode", "0755").
		String("size", "16m").String("nr_inodes", "2048").Mount(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, nil, err
	}
	k := &kit{dir: m, owner: int(spec.UIDBase)}
	for _, d := range []string{"dev", "dev/pts", "dev/shm", "dev/mqueue", "dev/net", "cgroup", "empty", "files"} {
		k.mkdir(d)
	}
	for _, n := range nodes {
		k.mknod(n)
	}
	if spec.System {
		for _, n := range systemNodes {
			if _, err := os.Lstat(path.Join("/dev", n.name)); err == nil {
				k.mknod(n)
			}
		}
	}
	for _, l := range links {
		k.symlink(l[1], path.Join("dev", l[0]))
	}
	if spec.Proc.TTY {
		k.file("dev/console", "", 0o600)
	}
	if len(hs) > 1 {
		for _, h := range hs {
			k.mkdir(path.Join("cgroup", h.Name))
		}
	}
	var files []setup.File
	for _, f := range []struct{ target, content string }{
		{"/etc/hostname", spec.Hostname + "\n"}, {"/etc/hosts", spec.Hosts}, {"/etc/resolv.conf", spec.Resolv},
	} {
		if f.content != "" {
			k.file(path.Join("files", path.Base(f.target)), f.content, 0o644)
			files = append(files, setup.File{Name: path.Base(f.target), Target: f.target})
		}
	}
	if k.err != nil {
		m.Close()
		return nil, nil, fmt.Errorf("prepare devices and files: %w", k.err)
	}
	return m, files, nil
}

// finish gives a new file its mode, whatever our umask is, and its owner.
func (k *kit) finish(name string, mode uint32, err error) {
	if err == nil {
		err = unix.Fchmodat(int(k.dir.Fd()), name, mode, 0)
	}
	if err == nil {
		err = unix.Fchownat(int(k.dir.Fd()), name, k.owner, k.owner, unix.AT_SYMLINK_NOFOLLOW)
	}
	k.check(name, err)
}

func (k *kit) check(name string, err error) {
	if err != nil && k.err == nil {
		k.err = &os.PathError{Op: "make", Path: name, Err: err}
	}
}

func (k *kit) mkdir(name string) {
	k.finish(name, 0o755, unix.Mkdirat(int(k.dir.Fd()), name, 0o755))
}

func (k *kit) mknod(n node) {
	name := path.Join("dev", n.name)
	k.finish(name, 0o666, unix.Mknodat(int(k.dir.Fd()), name, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))))
}

func (k *kit) symlink(target, name string) {
	err := unix.Symlinkat(target, int(k.dir.Fd()), name)
	if err == nil {
		err = unix.Fchownat(int(k.dir.Fd()), name, k.owner, k.owner, unix.AT_SYMLINK_NOFOLLOW)
	}
	k.check(name, err)
}

func (k *kit) file(name, content string, mode uint32) {
	fd, err := unix.Openat(int(k.dir.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
	if err == nil {
		_, err = unix.Write(fd, []byte(content))
		unix.Close(fd)
	}
	k.finish(name, mode, err)
}
