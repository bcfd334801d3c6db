package jail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/handover"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// Wall is one that is being built.
type Wall struct {
	message message
	mounts  []*os.File
	files   []*os.File // for the process
	owned   []*os.File // of those, what Close closes
	conn    *net.UnixConn
}

// New prepares everything that needs no process.
func New(s Spec) (_ *Wall, err error) {
	w := &Wall{message: message{Seccomp: s.Seccomp}}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if err = w.connect(); err != nil {
		return nil, err
	}
	if err = w.program(&s.Program, &w.message.Program); err != nil {
		return nil, err
	}
	if s.Beside != nil {
		w.message.Beside = &program{}
		if err = w.program(s.Beside, w.message.Beside); err != nil {
			return nil, err
		}
	}
	r := &root{wall: w, owner: int(s.UIDBase) + ID}
	err = r.build(&s)
	return w, err
}

// connect makes the connection over which the process is told what to do.
func (w *Wall) connect() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make the monitor's connection: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "monitor")
	w.files, w.owned = append(w.files, theirs), append(w.owned, theirs)
	w.conn, err = handover.Connection(fds[0])
	return err
}

// program adds a program's files to the process's.
func (w *Wall) program(p *Program, m *program) error {
	exe, err := filepath.EvalSymlinks(p.Exe)
	if err != nil {
		return api.Errorf(api.CodeUnsupported, "the program %s is not on this host: %w", p.Exe, err)
	}
	m.Exe, m.Args, m.Env, m.Files = exe, p.Args, p.Env, len(p.Files)
	for _, f := range p.Files {
		file := f.File
		if file == nil {
			// The number is taken until the process puts the stream there.
			if file, err = os.Open(os.DevNull); err != nil {
				return err
			}
			w.owned = append(w.owned, file)
			m.Std = append(m.Std, std{FD: 3 + len(w.files), Std: f.Std, Access: f.Access})
		}
		w.files = append(w.files, file)
	}
	return nil
}

// Files are the descriptors of the process from 3 on.
func (w *Wall) Files() []*os.File { return w.files }

// Build has the process finish the wall, and returns when it has executed the
// program. What ended before it could say why is io.EOF.
func (w *Wall) Build(ctx context.Context) error {
	// The process has its copy: when it dies, ours answers no more.
	w.files[0].Close()
	stop := context.AfterFunc(ctx, func() { w.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := handover.Send(w.conn, &w.message, w.mounts)
	if said := handover.Wait(w.conn, true); err == nil || !errors.Is(said, io.EOF) {
		err = said // it has said why it takes no more
	}
	if err != nil && ctx.Err() != nil {
		return api.Errorf(api.CodeTimeout, "gave up waiting for the monitor's process: %w", ctx.Err())
	}
	return err
}

// Close lets go of what the process has or doesn't need any more.
func (w *Wall) Close() {
	handover.CloseAll(w.mounts)
	handover.CloseAll(w.owned)
	if w.conn != nil {
		w.conn.Close()
	}
}

// attr are the attributes of what is shown.
const attr = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// root fills the file system that becomes the monitor's root directory.
type root struct {
	wall  *Wall
	dir   *os.File
	tmp   *os.File // what is mounted on its /tmp
	owner int      // host id of the monitor
}

func (r *root) build(s *Spec) error {
	// It belongs to the host's user namespace, which is why device nodes work.
	dir, err := mountfd.New("tmpfs").String("source", "cleave").String("mode", "0755").
		String("size", "1m").String("nr_inodes", "512").Mount(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	r.dir = dir
	r.wall.add("/", dir)
	for _, d := range []string{"dev", "proc", "tmp"} {
		if err := r.mkdir(d); err != nil {
			return err
		}
	}
	if err := r.devices(s.Devices); err != nil {
		return err
	}
	tmp, err := mountfd.New("tmpfs").String("source", "cleave").String("mode", "1777").
		String("size", fmt.Sprint(int64(s.Tmp))).String("nr_inodes", "1024").Mount(attr)
	if err != nil {
		return err
	}
	r.tmp = tmp
	r.wall.add("/tmp", tmp)
	if err := r.system(); err != nil {
		return err
	}
	for _, path := range s.Show {
		if err := r.show(path, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	for _, path := range s.Write {
		if err := r.show(path, unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	for name, to := range s.Links {
		if err := r.symlink(to, strings.TrimPrefix(name, "/")); err != nil {
			return err
		}
	}
	return nil
}

func (w *Wall) add(target string, mount *os.File) {
	w.message.Mounts = append(w.message.Mounts, target)
	w.mounts = append(w.mounts, mount)
}
