package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/lab/wire"
)

// What a request asks for.
const (
	opList   = "list"
	opAdd    = "add"  // and boot
	opBoot   = "boot" // hosts that are off
	opLink   = "link"
	opKill   = "kill"
	opPower  = "lose-power"
	opOff    = "power-off"
	opPause  = "pause"
	opResume = "resume"
	opDial   = "dial"
	opDown   = "down"
)

type request struct {
	Op    string      `json:"op"`
	Hosts []string    `json:"hosts,omitempty"`
	Specs []lab.Spec  `json:"specs,omitempty"`
	Link  *lab.Change `json:"link,omitempty"`
}

// maxMessage bounds a message.
const maxMessage = 1 << 20

type reply struct {
	Tell   string          `json:"tell,omitempty"`
	Done   bool            `json:"done,omitempty"` // the last one
	Error  *api.Error      `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Status is what there is to know of a lab.
type Status struct {
	PID   int    `json:"pid"`
	Image string `json:"image"`
	Hosts []Host `json:"hosts"`
	Links []Link `json:"links"`
}

// Host is what there is to know of a host.
type Host struct {
	lab.Spec
	State   lab.State `json:"state"`
	Address string    `json:"address"`
	Console string    `json:"console"` // path of what it said
}

// Link is one direction between two hosts.
type Link struct {
	From string `json:"from"`
	To   string `json:"to"`
	wire.Rule
	wire.Counters
}

// Names of files in a lab's directory, beside those of its hosts.
const (
	fileSocket = "control.sock"
	fileLock   = "lock"
	fileLog    = "lab.log"
	dirLab     = "l"
)

// Dir is the directory of a lab of this user, by its name.
func Dir(name string) (string, error) {
	if api.ValidateName("lab", name) != nil {
		return "", fmt.Errorf("a lab can't be named %q", name)
	}
	base := filepath.Join(os.TempDir(), fmt.Sprintf("cleave-lab-%d", os.Getuid()))
	if err := os.Mkdir(base, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	// Everybody can make a directory of that name.
	st, err := os.Lstat(base)
	if err != nil {
		return "", err
	}
	if s, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || s.Uid != uint32(os.Getuid()) || st.Mode().Perm() != 0o700 {
		return "", fmt.Errorf("%s is not this user's alone; remove it", base)
	}
	return filepath.Join(base, name), nil
}

// lock takes the lock of a lab's directory.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, fileLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// removeLeft removes the directory of a lab whose process has gone, and tells
// whether there is one whose process hasn't.
func removeLeft(dir string) (running bool, err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	f, err := lock(dir)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	return false, os.RemoveAll(dir)
}
