package guest

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// defaultPath is PATH where neither image nor request sets it, the one that
// container tools agree on.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is all that is known about a process before it starts.
type command struct {
	argv []string
	env  []string
	dir  string
	user account
}

// prepare resolves user, environment and working directory. Later entries of
// env win.
func prepare(argv, env []string, user, dir string, tty bool) (*command, error) {
	if len(argv) == 0 || argv[0] == "" {
		return nil, api.Errorf(api.CodeInvalid, "executing in the guest: no command is given").WithField(api.FieldCommand)
	}
	acc, err := etc.find(user)
	if err != nil {
		return nil, err
	}
	if dir == "" {
		dir = "/"
	}
	if !path.IsAbs(dir) {
		dir = "/" + dir
	}
	return &command{argv: argv, env: environ(env, acc, tty), dir: dir, user: acc}, nil
}

// environ removes what is set again later, and adds what every process may
// count on.
func environ(env []string, acc account, tty bool) []string {
	at := make(map[string]int, len(env)+3)
	out := make([]string, 0, len(env)+3)
	for _, kv := range env {
		key, _, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			continue
		}
		if i, again := at[key]; again {
			out[i] = kv
			continue
		}
		at[key] = len(out)
		out = append(out, kv)
	}
	defaults := [][2]string{{"PATH", defaultPath}, {"HOME", acc.home}}
	if tty {
		defaults = append(defaults, [2]string{"TERM", "xterm"})
	}
	for _, d := range defaults {
		if _, ok := at[d[0]]; !ok {
			out = append(out, d[0]+"="+d[1])
		}
	}
	return out
}

// start executes the command as execvp(3) does: a name without a slash is
// looked for in PATH, and one that may not be executed is passed over while
// there are others. files become descriptors 0, 1 and 2; with tty the first
// becomes the controlling terminal of the new session.
func (c *command) start(r *reaper, files [3]uintptr, tty bool) (*child, error) {
	attr := &syscall.ProcAttr{
		Dir:   c.dir,
		Env:   c.env,
		Files: files[:],
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: tty},
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: c.user.uid, Gid: c.user.gid, Groups: c.user.groups}
	} else if int(c.user.uid) != os.Geteuid() {
		return nil, userErrorf("user %d: the agent runs as uid %d and can't change it", c.user.uid, os.Geteuid())
	}
	if err := c.checkDir(); err != nil {
		return nil, err
	}
	var refused error
	for _, file := range c.candidates() {
		child, err := r.start(file, c.argv, attr)
		switch {
		case err == nil:
			return child, nil
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
			if _, statErr := os.Stat(c.abs(file)); statErr == nil {
				return nil, c.refused(file, errors.New("the interpreter or loader that it names isn't there"))
			}
		case errors.Is(err, unix.EACCES):
			refused = c.refused(file, err) // unless there is another one
		default:
			return nil, c.refused(file, err)
		}
	}
	if refused != nil {
		return nil, refused
	}
	if strings.Contains(c.argv[0], "/") {
		return nil, api.Errorf(api.CodeNotFound, "executing %s in the guest: no such file", c.argv[0]).WithField(api.FieldCommand)
	}
	return nil, api.Errorf(api.CodeNotFound, "executing %s in the guest: not found in PATH (%s)", c.argv[0], c.path()).WithField(api.FieldCommand)
}

func (c *command) refused(file string, err error) *api.Error {
	hint := ""
	switch {
	case errors.Is(err, unix.EACCES):
		hint = "the file, a directory above it or the working directory is closed to the user"
	case errors.Is(err, unix.ENOEXEC):
		hint = "it is no program for this machine, or a script without #!"
	case errors.Is(err, unix.E2BIG):
		hint = "shorten the arguments or the environment"
	case errors.Is(err, unix.EPERM):
		hint = "the guest may not run it as this user"
	}
	e := api.Errorf(api.CodeInvalid, "executing %s in the guest: %w", file, err).WithField(api.FieldCommand)
	if hint == "" {
		return e
	}
	return e.WithHint("%s", hint)
}

// checkDir tells a missing working directory from a missing command, which
// exec doesn't.
func (c *command) checkDir() error {
	info, err := os.Stat(c.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.CodeNotFound, "working directory %s: no such directory in the guest", c.dir).WithField(api.FieldWorkDir)
	case err != nil:
		return api.Errorf(api.CodeInvalid, "working directory: %w", err).WithField(api.FieldWorkDir)
	case !info.IsDir():
		return api.Errorf(api.CodeInvalid, "working directory %s: is no directory", c.dir).WithField(api.FieldWorkDir)
	}
	return nil
}

// candidates are the files that may be the command, without those that
// certainly aren't: a stat is cheaper than a process.
func (c *command) candidates() []string {
	name := c.argv[0]
	if strings.Contains(name, "/") {
		return []string{name} // relative to dir, where the process is by then
	}
	var files []string
	for dir := range strings.SplitSeq(c.path(), ":") {
		file := c.abs(dir + "/" + name)
		if dir == "" {
			file = c.abs(name) // an empty element is the working directory
		}
		if info, err := os.Stat(file); err == nil && !info.IsDir() {
			files = append(files, file)
		}
	}
	return files
}

// abs is how the agent names what the command's process would call file.
func (c *command) abs(file string) string {
	if path.IsAbs(file) {
		return file
	}
	return c.dir + "/" + file
}

func (c *command) path() string {
	i := slices.IndexFunc(c.env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") })
	return strings.TrimPrefix(c.env[i], "PATH=") // environ has set it
}
