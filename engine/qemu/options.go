package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/cleave-project/cleave/engine/machine"
)

// options writes an argument: a driver's name and pairs of key and value. A
// comma in a value is written twice.
func options(driver string, pairs ...string) string {
	var b strings.Builder
	b.WriteString(driver)
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, ",%s=%s", pairs[i], strings.ReplaceAll(pairs[i+1], ",", ",,"))
	}
	return b.String()
}

// commandLine grows a monitor's command. Files become descriptors; what opens
// by name gets one by a set of descriptors (qemu(1), -add-fd), whose access
// must be what is asked for.
type commandLine struct {
	*machine.Command
	sets int
}

func (c *commandLine) add(args ...string) { c.Args = append(c.Args, args...) }

// device adds a device.
func (c *commandLine) device(driver string, pairs ...string) {
	c.add("-device", options(driver, pairs...))
}

// path makes a descriptor one that can be opened. A label is for those that
// are given up while the guest runs (qmp.Client.RemoveFiles).
func (c *commandLine) path(fd int, label string) string {
	c.sets++
	arg := fmt.Sprintf("fd=%d,set=%d", fd, c.sets)
	if label != "" {
		arg += ",opaque=" + label
	}
	c.add("-add-fd", arg)
	return fmt.Sprintf("/dev/fdset/%d", c.sets)
}

// listen adds a character device that is a listening socket, for one peer at
// a time.
func (c *commandLine) listen(id string, socket *os.File) {
	c.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, c.Give(socket)))
}

// output adds a character device that writes to a standard stream of QEMU.
func (c *commandLine) output(id, path string) {
	c.add("-chardev", options("file", "id", id, "path", path, "append", "on"))
}

// node is a disk's content as blockdev-add takes it (qapi/block-core.json).
type node struct {
	Driver       string `json:"driver"`
	Name         string `json:"node-name,omitempty"`
	Filename     string `json:"filename,omitempty"`
	ReadOnly     bool   `json:"read-only"`
	AutoReadOnly bool   `json:"auto-read-only"`
	Discard      string `json:"discard"`
	AIO          string `json:"aio,omitempty"`
	Group        string `json:"throttle-group,omitempty"`
	File         *node  `json:"file,omitempty"` // of what passes requests on
}

// newNode describes a file or block device. What the guest flushed is on the
// host's disk: a flush is passed on, and nothing else is lost than what any
// computer loses that is switched off. Blocks that the guest discards are
// given back. A thread reads and writes: io_uring is the part of the kernel
// that monitors are best kept from.
func newNode(name, path string, f *os.File, readOnly bool) node {
	driver := "file"
	if st, err := f.Stat(); err == nil && st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice {
		driver = "host_device"
	}
	return node{Driver: driver, Name: name, Filename: path, ReadOnly: readOnly, Discard: "unmap", AIO: "threads"}
}

// blockdev adds a node for a file, which stays the caller's.
func (c *commandLine) blockdev(name string, f *os.File, readOnly bool) {
	c.labelled("", name, f, readOnly)
}

func (c *commandLine) labelled(label, name string, f *os.File, readOnly bool) {
	c.node(newNode(name, c.path(c.File(f), label), f, readOnly))
}

// paced adds a node for a disk that the guest's limits hold for.
func (c *commandLine) paced(name string, f *os.File, readOnly bool) {
	c.node(newDisk(name, c.path(c.File(f), ""), f, readOnly))
}

func (c *commandLine) node(n node) {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // it has only strings
	}
	c.add("-blockdev", string(b))
}
