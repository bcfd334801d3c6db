package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// The commands in use, as qapi/*.json of QEMU has them. Those that are not
// here (device_add, blockdev-add, ...) take what Execute encodes.

// Run states (qapi/run-state.json, RunState).
const (
	StateRunning   = "running"
	StatePaused    = "paused"
	StatePrelaunch = "prelaunch"
	StateIncoming  = "inmigrate"
	StateMigrated  = "postmigrate"
	StateFinishing = "finish-migrate"
	StatePanicked  = "guest-panicked"
	StateShutdown  = "shutdown"
)

// Status returns the run state.
func (c *Client) Status(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := c.Execute(ctx, "query-status", nil, &s)
	return s.Status, err
}

// Stop halts the CPUs, Cont lets them run.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Cont lets the CPUs run.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// PowerDown presses the power button.
func (c *Client) PowerDown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// Quit ends QEMU. That it ends the connection too is no error.
func (c *Client) Quit(ctx context.Context) error {
	err := c.Execute(ctx, "quit", nil, nil)
	if err != nil && c.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// Balloon asks the guest to make do with size bytes.
func (c *Client) Balloon(ctx context.Context, size int64) error {
	return c.Execute(ctx, "balloon", map[string]int64{"value": size}, nil)
}

// BalloonSize is what the guest makes do with now.
func (c *Client) BalloonSize(ctx context.Context) (int64, error) {
	var b struct {
		Actual int64 `json:"actual"`
	}
	err := c.Execute(ctx, "query-balloon", nil, &b)
	return b.Actual, err
}

// GetFile hands QEMU a descriptor under a name, for commands that take one.
// CloseFile takes back what none of them took.
func (c *Client) GetFile(ctx context.Context, name string, f *os.File) error {
	return c.ExecuteFile(ctx, "getfd", map[string]string{"fdname": name}, f, nil)
}

// CloseFile takes back a descriptor.
func (c *Client) CloseFile(ctx context.Context, name string) error {
	return c.Execute(ctx, "closefd", map[string]string{"fdname": name}, nil)
}

// AddFile hands QEMU a descriptor as a set of its own, and returns the path
// by which commands open it: with the access that the descriptor has. The
// label is for RemoveFiles.
func (c *Client) AddFile(ctx context.Context, f *os.File, label string) (path string, err error) {
	var r struct {
		Set int64 `json:"fdset-id"`
	}
	if err := c.ExecuteFile(ctx, "add-fd", map[string]string{"opaque": label}, f, &r); err != nil {
		return "", err
	}
	return fmt.Sprintf("/dev/fdset/%d", r.Set), nil
}

// RemoveFiles gives up what AddFile returned under a label, but for except;
// who has it open keeps it.
func (c *Client) RemoveFiles(ctx context.Context, label, except string) error {
	var sets []struct {
		Set   int64 `json:"fdset-id"`
		Files []struct {
			Label string `json:"opaque"`
		} `json:"fds"`
	}
	err := c.Execute(ctx, "query-fdsets", nil, &sets)
	for _, s := range sets {
		for _, f := range s.Files {
			if f.Label == label && fmt.Sprintf("/dev/fdset/%d", s.Set) != except {
				err = errors.Join(err, c.Execute(ctx, "remove-fd", map[string]int64{"fdset-id": s.Set}, nil))
			}
		}
	}
	return err
}

// Migration is the state of a migration.
type Migration struct {
	Status string `json:"status"` // none, setup, active, completed, failed, ...
	Error  string `json:"error-desc"`
}

// Ended tells whether the migration has ended, and how.
func (m Migration) Ended() (bool, error) {
	switch m.Status {
	case "completed":
		return true, nil
	case "failed", "cancelled":
		if m.Error != "" {
			return true, errors.New(m.Error)
		}
		return true, errors.New("QEMU says no more than " + m.Status)
	}
	return false, nil
}

// Migrate sends the guest's state to a descriptor named by GetFile. It
// returns when that has begun.
func (c *Client) Migrate(ctx context.Context, fdname string) error {
	return c.Execute(ctx, "migrate", map[string]string{"uri": "fd:" + fdname}, nil)
}

// MigrationState looks how far it is.
func (c *Client) MigrationState(ctx context.Context) (Migration, error) {
	var m Migration
	err := c.Execute(ctx, "query-migrate", nil, &m)
	return m, err
}

// CPU is a place for a virtual CPU, free if Path is empty.
type CPU struct {
	Type  string         `json:"type"`
	Props map[string]any `json:"props"`
	Path  string         `json:"qom-path"`
}

// CPUs lists the places for virtual CPUs. A machine that can't take more
// while it runs refuses.
func (c *Client) CPUs(ctx context.Context) ([]CPU, error) {
	var cpus []CPU
	err := c.Execute(ctx, "query-hotpluggable-cpus", nil, &cpus)
	return cpus, err
}

// VNC gives a connection to the VNC server, which must run.
func (c *Client) VNC(ctx context.Context, conn *os.File) error {
	const name = "vnc"
	if err := c.GetFile(ctx, name, conn); err != nil {
		return err
	}
	err := c.Execute(ctx, "add_client", map[string]any{"protocol": "vnc", "fdname": name, "skipauth": true}, nil)
	if err != nil {
		_ = c.CloseFile(ctx, name)
	}
	return err
}

// Screendump writes the screen to a path as PPM.
func (c *Client) Screendump(ctx context.Context, path string) error {
	return c.Execute(ctx, "screendump", map[string]string{"filename": path}, nil)
}

// Eject takes the medium out of a drive, locked or not.
func (c *Client) Eject(ctx context.Context, device string) error {
	return c.Execute(ctx, "eject", map[string]any{"id": device, "force": true}, nil)
}

// ChangeMedium puts another medium in a drive, whatever is in it.
func (c *Client) ChangeMedium(ctx context.Context, device, path string) error {
	return c.Execute(ctx, "blockdev-change-medium", map[string]any{
		"id": device, "filename": path, "format": "raw", "read-only-mode": "read-only", "force": true,
	}, nil)
}

// Shutdown is the data of the event SHUTDOWN (ShutdownCause).
type Shutdown struct {
	Guest  bool   `json:"guest"`
	Reason string `json:"reason"`
}

// Events in use.
const (
	EventShutdown  = "SHUTDOWN"
	EventReset     = "RESET"
	EventPanicked  = "GUEST_PANICKED"
	EventMigration = "MIGRATION"
	EventBalloon   = "BALLOON_CHANGE"
	EventDeleted   = "DEVICE_DELETED"
	EventPort      = "VSERPORT_CHANGE"
)

// Port is the data of the event VSERPORT_CHANGE: a port of the guest's was
// opened or closed by it.
type Port struct {
	ID   string `json:"id"`
	Open bool   `json:"open"`
}

// Decode fills v from the event's data.
func (e Event) Decode(v any) error {
	if len(e.Data) == 0 {
		return fmt.Errorf("event %s has no data", e.Name)
	}
	return json.Unmarshal(e.Data, v)
}

// CPUCount is how many virtual CPUs there are.
func (c *Client) CPUCount(ctx context.Context) (int, error) {
	var cpus []struct{}
	err := c.Execute(ctx, "query-cpus-fast", nil, &cpus)
	return len(cpus), err
}

// Memory is the size of the RAM that the machine was started with.
func (c *Client) Memory(ctx context.Context) (int64, error) {
	var m struct {
		Base int64 `json:"base-memory"`
	}
	err := c.Execute(ctx, "query-memory-size-summary", nil, &m)
	return m.Base, err
}

// Devices are the ids of all devices that were given one.
func (c *Client) Devices(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Name string `json:"name"`
		Type string `json:"type"`
	}
	if err := c.Execute(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"}, &list); err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, d := range list {
		ids[d.Name] = true
	}
	return ids, nil
}

// Drive is one that has or may have a medium.
type Drive struct {
	Path      string          `json:"qdev"`
	Removable bool            `json:"removable"`
	Inserted  json.RawMessage `json:"inserted"` // empty without a medium
}

// Drives are all disks and drives.
func (c *Client) Drives(ctx context.Context) ([]Drive, error) {
	var list []Drive
	err := c.Execute(ctx, "query-block", nil, &list)
	return list, err
}

// BlockStat is what a disk or drive was asked for.
type BlockStat struct {
	Node  string `json:"node-name"`
	Stats struct {
		ReadBytes int64 `json:"rd_bytes"`
		Writes    int64 `json:"wr_operations"`
		Flushes   int64 `json:"flush_operations"`
	} `json:"stats"`
}

// BlockStats are those of all disks and drives.
func (c *Client) BlockStats(ctx context.Context) ([]BlockStat, error) {
	var list []BlockStat
	err := c.Execute(ctx, "query-blockstats", nil, &list)
	return list, err
}

// PhysicalMemory prints bytes of the machine's memory, as its first CPU finds
// it, in hexadecimal.
func (c *Client) PhysicalMemory(ctx context.Context, at uint64, size int) (string, error) {
	var text string
	line := fmt.Sprintf("xp /%dxb 0x%x", size, at)
	err := c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &text)
	return text, err
}

// OpenPorts are the names of the character devices whose other end the guest
// has opened.
func (c *Client) OpenPorts(ctx context.Context) ([]string, error) {
	var list []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	err := c.Execute(ctx, "query-chardev", nil, &list)
	var open []string
	for _, d := range list {
		if d.Open {
			open = append(open, d.Label)
		}
	}
	return open, err
}

// NodeSize is how many bytes a node of the block layer has.
func (c *Client) NodeSize(ctx context.Context, name string) (int64, error) {
	var nodes []struct {
		Name  string `json:"node-name"`
		Image struct {
			Size int64 `json:"virtual-size"`
		} `json:"image"`
	}
	if err := c.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return 0, err
	}
	for _, n := range nodes {
		if n.Name == name {
			return n.Image.Size, nil
		}
	}
	return 0, fmt.Errorf("there is no node %q", name)
}
