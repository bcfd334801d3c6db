package keeper

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// start makes a guest, or leaves nothing behind.
func (s *server) start(id string, r *startMessage, files []*os.File) (Guest, error) {
	l, err := newLaunch(id, r, files)
	if err != nil {
		return Guest{}, err
	}
	if err := s.reserve(id); err != nil {
		return Guest{}, err
	}
	g, err := s.launch(id, l)
	s.settle(id, g)
	if err != nil {
		return Guest{}, err
	}
	if err := g.watchAll(); err != nil {
		// Out of memory for a watch: the guest can't be looked after.
		_ = unix.PidfdSendSignal(g.pidfd, unix.SIGKILL, nil, 0)
		g.ended()
		_ = s.forget(id)
		return Guest{}, api.Errorf(api.CodeNoResources, "start guest %s: watch its descriptors: %w", id, err)
	}
	s.store.save(g)
	return g.snapshot(), nil
}

func newLaunch(id string, r *startMessage, files []*os.File) (*launch, error) {
	need := 1
	if r.Cgroup {
		need++
	}
	switch {
	case id == "":
		return nil, api.Errorf(api.CodeInvalid, "start: the guest has no id")
	case len(r.Args) == 0:
		return nil, api.Errorf(api.CodeInvalid, "start guest %s: no arguments, not even its name", id)
	case len(files) < need:
		return nil, api.Errorf(api.CodeInvalid, "start guest %s: %d files came, at least %d are needed", id, len(files), need)
	case r.Clone&unix.CLONE_NEWUSER != 0 && (len(r.UIDMap) == 0 || len(r.GIDMap) == 0):
		return nil, api.Errorf(api.CodeInvalid, "start guest %s: a new user namespace needs id maps", id)
	}
	for _, dir := range []string{r.Dir, r.LogDir} {
		if !filepath.IsAbs(dir) {
			return nil, api.Errorf(api.CodeInvalid, "start guest %s: directory %q is not absolute", id, dir)
		}
	}
	l := &launch{request: r, exe: files[0], files: files[need:]}
	if r.Cgroup {
		l.cgroup = files[1]
	}
	return l, nil
}

func (s *server) launch(id string, l *launch) (*guest, error) {
	r := l.request
	log, err := newLogWriter(r.LogDir, logLimit)
	if err != nil {
		return nil, startError(id, "open its log", err)
	}
	stdio, child, err := makeStdio(r.Dir, r.Owner, r.Terminal, r.Stdin)
	if err != nil {
		log.close()
		return nil, startError(id, "make its standard streams", err)
	}
	defer child.close()
	g := &guest{server: s, dir: r.Dir, logDir: r.LogDir, child: true, log: log, stdio: stdio, pidfd: -1}
	l.stdio = child.fds
	if err = g.makeInput(); err == nil {
		g.info.PID, g.pidfd, err = l.clone()
	}
	if err != nil {
		g.discard()
		return nil, startError(id, "", err)
	}
	st, err := readProcStat(g.info.PID)
	if err != nil {
		_ = unix.Kill(g.info.PID, unix.SIGKILL)
		waitChild(g.info.PID)
		g.discard()
		return nil, startError(id, "read its start time", err)
	}
	g.info.ID, g.info.StartTime, g.info.Started, g.info.Terminal = id, st.startTime, time.Now().UTC(), r.Terminal
	return g, nil
}

// makeInput takes over what the guest's input is written to.
func (g *guest) makeInput() error {
	g.input = &input{guest: g, fd: g.stdio.stdin}
	g.stdio.stdin = -1
	if g.stdio.master < 0 {
		return nil
	}
	fd, err := unix.FcntlInt(uintptr(g.stdio.master), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		g.input.fd = fd
	}
	return err
}

// discard releases a guest that never was.
func (g *guest) discard() {
	g.input.close()
	g.log.close()
	g.release()
	removeFIFOs(g.dir)
}

// startError says what could not be done for which guest, with the code that
// the error has or the errno stands for.
func startError(id, what string, err error) error {
	if what != "" {
		what += ": "
	}
	var e *api.Error
	if errors.As(err, &e) {
		return api.Errorf(e.Code, "start guest %s: %s%w", id, what, err)
	}
	code := api.CodeInternal
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code = api.CodeNoSpace
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
		code = api.CodeNoResources
	}
	return api.Errorf(code, "start guest %s: %s%w", id, what, err)
}
