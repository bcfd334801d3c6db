package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// unplugLimit is how long a guest may take to let go of a device.
const unplugLimit = 30 * time.Second

// plugged begins the ids of devices that were not there at the start.
const plugged = "plugged-"

// guest finds a running guest and its connection.
func (e *Engine) guest(ctx context.Context, id string) (*machine.Guest, *qmp.Client, *session, error) {
	g, err := e.Engine.Guest(id)
	if err != nil {
		return nil, nil, nil, err
	}
	c, s, err := e.mon.client(ctx, g)
	return g, c, s, err
}

// AttachDisk implements engine.Plugger.
func (e *Engine) AttachDisk(ctx context.Context, id string, d engine.Disk) error {
	if d.CDROM {
		return api.Errorf(api.CodeUnsupported, "guest %s: a drive can't be added while it runs", id).WithHint("put the medium into the one it has")
	}
	g, c, s, err := e.guest(ctx, id)
	if err != nil {
		return err
	}
	f, err := e.OpenDisk(ctx, id, d)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := attachDisk(ctx, c, id, d, f); err != nil {
		return machine.Unanswered(id, err)
	}
	err = e.MountDisk(ctx, g, d)
	undo(&err, func(ctx context.Context) error { return s.takeDisk(ctx, c, d.ID) })
	return machine.Unanswered(id, err)
}

func attachDisk(ctx context.Context, c *qmp.Client, id string, d engine.Disk, f *os.File) (err error) {
	label := plugged + diskID(d.ID)
	devices, err := c.Devices(ctx)
	if err != nil {
		return err
	}
	if devices[label] || devices[diskID(d.ID)] {
		return api.Errorf(api.CodeExists, "guest %s has a disk %s already", id, d.ID)
	}
	file, err := c.AddFile(ctx, f, label)
	if err != nil {
		return err
	}
	defer undo(&err, func(ctx context.Context) error { return c.RemoveFiles(ctx, label, "") })
	if err := c.Execute(ctx, "blockdev-add", newDisk(d.ID, file, f, d.ReadOnly), nil); err != nil {
		return err
	}
	defer undo(&err, func(ctx context.Context) error {
		return c.Execute(ctx, "blockdev-del", map[string]string{"node-name": d.ID}, nil)
	})
	return plug(ctx, c, id, map[string]any{"driver": "virtio-blk-pci", "id": label, "drive": d.ID, "serial": d.ID})
}

// undo undoes a step when *err says that a later one failed. Of a machine that
// is no more there is nothing to undo.
func undo(err *error, step func(context.Context) error) {
	if *err != nil && !machine.HungUp(*err) {
		ctx, cancel := context.WithTimeout(context.Background(), qmp.Limit)
		defer cancel()
		*err = errors.Join(*err, step(ctx))
	}
}

// plug adds a device at the first port that is free. Without an address QEMU
// takes a port that is taken for a bus with more places, and the kernel, which
// knows better, lets go of what is there (seen with QEMU 7.2 and Linux 6.1).
func plug(ctx context.Context, c *qmp.Client, id string, device map[string]any) error {
	for n := 0; ; n++ {
		device["bus"], device["addr"] = portID(n), "0"
		err := c.Execute(ctx, "device_add", device, nil)
		var refused *qmp.Error
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &refused):
			return err
		case strings.Contains(refused.Desc, "in use by"):
			continue
		case strings.Contains(refused.Desc, "Bus '"+portID(n)+"' not found"):
			return api.Errorf(api.CodeNoResources, "guest %s: all %d ports for devices that are added while it runs are taken", id, n).
				WithHint("detach another device, or restart the guest")
		default:
			return err
		}
	}
}

// DetachDisk implements engine.Plugger.
func (e *Engine) DetachDisk(ctx context.Context, id, disk string) error {
	g, c, s, err := e.guest(ctx, id)
	if err != nil {
		return err
	}
	if err := s.canUnplug(ctx, c, diskID(disk), "disk "+disk); err != nil {
		return machine.Unanswered(id, err)
	}
	again, err := e.UnmountDisk(ctx, g, disk)
	if err != nil {
		return err
	}
	err = s.takeDisk(ctx, c, disk)
	undo(&err, again)
	return machine.Unanswered(id, err)
}

// takeDisk unplugs a disk and forgets it.
func (s *session) takeDisk(ctx context.Context, c *qmp.Client, disk string) error {
	err := s.unplug(ctx, c, diskID(disk), "disk "+disk)
	if err == nil {
		err = c.Execute(ctx, "blockdev-del", map[string]string{"node-name": disk}, nil)
	}
	if err == nil {
		err = c.RemoveFiles(ctx, plugged+diskID(disk), "")
	}
	return err
}

// canUnplug refuses what was not plugged.
func (s *session) canUnplug(ctx context.Context, c *qmp.Client, device, what string) error {
	devices, err := c.Devices(ctx)
	switch {
	case err != nil:
		return err
	case devices[device]:
		return api.Errorf(api.CodeUnsupported, "guest %s: its %s was there at the start, and stays while it runs", s.id, what).WithHint("stop the guest first")
	case !devices[plugged+device]:
		return api.Errorf(api.CodeNotFound, "guest %s has no %s", s.id, what)
	}
	return nil
}

// unplug takes a device away, when the guest lets go of it.
func (s *session) unplug(ctx context.Context, c *qmp.Client, device, what string) error {
	if err := s.canUnplug(ctx, c, device, what); err != nil {
		return err
	}
	deleted, stop := s.watch(qmp.EventDeleted)
	defer stop()
	// QEMU refuses to ask twice, which a caller that tries again does.
	var refused *qmp.Error
	err := c.Execute(ctx, "device_del", map[string]string{"id": plugged + device}, nil)
	if err != nil && !(errors.As(err, &refused) && strings.Contains(refused.Desc, "in the process of unplug")) {
		return err
	}
	limit := time.NewTimer(unplugLimit)
	defer limit.Stop()
	for {
		devices, err := c.Devices(ctx)
		if err != nil || !devices[plugged+device] {
			return err
		}
		select {
		case <-deleted:
		case <-c.Done():
			return c.Err()
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return api.Errorf(api.CodeTimeout, "guest %s has not let go of its %s for %v", s.id, what, unplugLimit).
				WithHint("it may be in use there, or the system may not be up yet; try again, or stop the guest")
		}
	}
}

// mediumLabel marks the descriptor of the medium in the drive.
const mediumLabel = "medium"

// InsertMedium implements engine.Plugger.
func (e *Engine) InsertMedium(ctx context.Context, id, medium string) error {
	_, c, _, err := e.guest(ctx, id)
	if err != nil {
		return err
	}
	drive, err := firstDrive(ctx, c)
	if err != nil {
		return machine.Unanswered(id, err)
	}
	if drive == "" {
		return api.Errorf(api.CodeUnsupported, "guest %s has no CD drive", id).WithHint("systems of their own have one, guests made of images don't")
	}
	file := ""
	if medium == "" {
		err = c.Eject(ctx, drive)
	} else if file, err = insert(ctx, c, drive, medium); err != nil {
		return machine.Unanswered(id, err)
	}
	// What was in the drive at the start has a node of its own, which holds
	// its file open; later ones go by themselves.
	var refused *qmp.Error
	if err == nil {
		err = c.Execute(ctx, "blockdev-del", map[string]string{"node-name": strings.TrimPrefix(drive, diskID(""))}, nil)
		if errors.As(err, &refused) {
			err = nil
		}
	}
	if err == nil {
		err = c.RemoveFiles(ctx, mediumLabel, file)
	}
	return machine.Unanswered(id, err)
}

// insert puts a file into a drive, and returns what QEMU knows it by.
func insert(ctx context.Context, c *qmp.Client, drive, medium string) (string, error) {
	f, err := os.Open(medium)
	if err != nil {
		return "", fmt.Errorf("open the medium: %w", err)
	}
	defer f.Close()
	file, err := c.AddFile(ctx, f, mediumLabel)
	if err != nil {
		return "", err
	}
	return file, c.ChangeMedium(ctx, drive, file)
}

// firstDrive is the id of the drive that media go into; empty if there is none.
func firstDrive(ctx context.Context, c *qmp.Client) (string, error) {
	drives, err := c.Drives(ctx)
	if err != nil {
		return "", err
	}
	for _, d := range drives {
		if d.Removable {
			return path.Base(d.Path), nil
		}
	}
	return "", nil
}

// AttachNIC implements engine.Plugger.
func (e *Engine) AttachNIC(ctx context.Context, id string, n engine.NIC, tap *os.File) error {
	g, c, s, err := e.guest(ctx, id)
	if err != nil {
		return err
	}
	if err := attachNIC(ctx, c, id, n, tap); err != nil {
		return machine.Unanswered(id, err)
	}
	err = e.ConfigureNIC(ctx, g, n)
	undo(&err, func(ctx context.Context) error { return s.takeNIC(ctx, c, n.Name) })
	return machine.Unanswered(id, err)
}

func attachNIC(ctx context.Context, c *qmp.Client, id string, n engine.NIC, tap *os.File) (err error) {
	name := nicID(n.Name)
	devices, err := c.Devices(ctx)
	if err != nil {
		return err
	}
	if devices[plugged+name] || devices[name] {
		return api.Errorf(api.CodeExists, "guest %s has a port %s already", id, n.Name)
	}
	if err := c.GetFile(ctx, name, tap); err != nil {
		return err
	}
	if err := c.Execute(ctx, "netdev_add", map[string]any{"type": "tap", "id": name, "fd": name}, nil); err != nil {
		return errors.Join(err, c.CloseFile(ctx, name))
	}
	defer undo(&err, func(ctx context.Context) error {
		return c.Execute(ctx, "netdev_del", map[string]string{"id": name}, nil)
	})
	return plug(ctx, c, id, map[string]any{"driver": "virtio-net-pci", "id": plugged + name, "netdev": name, "mac": n.MAC.String(), "romfile": ""})
}

// DetachNIC implements engine.Plugger.
func (e *Engine) DetachNIC(ctx context.Context, id, name string) error {
	g, c, s, err := e.guest(ctx, id)
	if err != nil {
		return err
	}
	if err := s.takeNIC(ctx, c, name); err != nil {
		return machine.Unanswered(id, err)
	}
	return e.ForgetNIC(g, name)
}

// takeNIC unplugs a port and forgets it.
func (s *session) takeNIC(ctx context.Context, c *qmp.Client, name string) error {
	if err := s.unplug(ctx, c, nicID(name), "port "+name); err != nil {
		return err
	}
	return c.Execute(ctx, "netdev_del", map[string]string{"id": nicID(name)}, nil)
}
