package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/vmm/control"
)

const tellUsage = `Usage: cleave-vmm control SOCKET REQUEST [arguments]

Requests:
  status                        how the machine is
  metrics                       what its devices have done
  pause, resume                 stop it and let it go on
  power-button, reset, stop     ask it to shut down, start it anew, pull its plug
  add-disk FILE[,format=qcow2][,name=N][,readonly][,queues=N][,serial=S][,changes=FILE]
  add-net TAP[,name=N][,mac=M][,queues=N]
  remove NAME                   have the guest let go of a device
  set-limits NAME BYTES OPERATIONS
                                bound a device, each in a second; 0 is no bound
  mark-disk NAME                note from now on which blocks of a disk are changed;
                                prints the mark
  changed NAME MARK             what of a disk was changed since a mark: on a line each,
                                offset and size of a part, in bytes; all of it, with
                                the reason as an error, if the mark isn't known
  forget-mark NAME MARK         a mark that nobody needs any more
  set-memory SIZE               how much memory the guest shall have
  migrate PLACE [--tls DIR] [--peer NAME] [--streams N] [--downtime D] [--no-throttle]
          [--mirror DISK,...] [--post-copy | --resume]
                                have the guest go on in the cleave-vmm that was
                                started with --incoming PLACE, whose certificate
                                has the name NAME (else PLACE's host). Disks are
                                shared with that one, but for those that are to
                                be copied to its own of the same names. With
                                --post-copy it goes on before all of its memory
                                is there; --resume sends what is left of that
                                after the link broke
  migration                     how that goes, or went, on either side
  cancel-migration              stay, or wait no more
  settle-migration here|gone    where neither side knows who has the guest: tell
                                first one side that it is gone, then the other
                                that it is there
  save DIRECTORY [--track] [--changes]
                                write a snapshot into a new directory; --track
                                notes what changes from then on, --changes
                                saves only that
`

// tell makes one request of a monitor.
func tell(args []string) error {
	if len(args) < 2 || strings.HasPrefix(args[0], "-") {
		fmt.Print(tellUsage)
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	c, err := control.Dial(ctx, args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	verb, args := args[1], args[2:]
	want := map[string]int{"add-disk": 1, "add-net": 1, "remove": 1, "set-limits": 3, "set-memory": 1, "mark-disk": 1, "changed": 2, "forget-mark": 2, "save": 1, "migrate": 1, "settle-migration": 1}[verb]
	if len(args) != want && (verb != "save" && verb != "migrate" || len(args) < want) {
		return fmt.Errorf("%s takes %d arguments, not %d", verb, want, len(args))
	}
	switch verb {
	case "status":
		s, err := c.Status(ctx)
		return show(s, err)
	case "metrics":
		m, err := c.Metrics(ctx)
		return show(m, err)
	case "pause":
		return c.Pause(ctx)
	case "resume":
		return c.Resume(ctx)
	case "power-button":
		return c.PowerButton(ctx)
	case "reset":
		return c.Reset(ctx)
	case "stop":
		return c.Stop(ctx)
	case "remove":
		return c.Remove(ctx, control.Remove{Name: args[0]})
	case "add-disk":
		return addDisk(ctx, c, args[0])
	case "add-net":
		return addNet(ctx, c, args[0])
	case "set-limits":
		return setLimits(ctx, c, args)
	case "mark-disk":
		m, err := c.MarkDisk(ctx, control.DiskMark{Name: args[0]})
		if err == nil {
			fmt.Println(m.Mark)
		}
		return err
	case "changed":
		return changed(ctx, c, control.DiskMark{Name: args[0], Mark: args[1]})
	case "forget-mark":
		return c.ForgetMark(ctx, control.DiskMark{Name: args[0], Mark: args[1]})
	case "set-memory":
		n, err := api.ParseBytes(args[0])
		if err != nil {
			return err
		}
		return c.SetMemory(ctx, control.SetMemory{Bytes: uint64(n)})
	case "migrate":
		return sendAway(ctx, c, args)
	case "migration":
		m, err := c.Migration(ctx)
		return show(m, err)
	case "cancel-migration":
		return c.CancelMigration(ctx)
	case "settle-migration":
		return settle(ctx, c, args[0])
	case "save":
		return save(ctx, c, args)
	}
	return fmt.Errorf("there is no request %q", verb)
}

func show(v any, err error) error {
	if err != nil {
		return err
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func addDisk(ctx context.Context, c *control.Client, arg string) error {
	d, f, changes, err := openDisk(arg, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if changes != nil {
		defer changes.Close()
	}
	if d.Mirror {
		return errors.New("a disk is mirrored for a guest that comes, not for one that is here")
	}
	return c.AddDisk(ctx, d.Disk, f, changes)
}

func addNet(ctx context.Context, c *control.Client, arg string) error {
	n, files, err := openNet(arg, 0)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	return c.AddNet(ctx, *n, files)
}

// changed prints what was changed since a mark.
func changed(ctx context.Context, c *control.Client, m control.DiskMark) error {
	changed, err := control.AllChanged(ctx, c, m)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	for _, r := range changed.Ranges {
		fmt.Fprintln(out, r[0], r[1])
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if changed.Lost != "" {
		return fmt.Errorf("mark %s of disk %q: all of it may have changed: %s", m.Mark, m.Name, changed.Lost)
	}
	return nil
}

func setLimits(ctx context.Context, c *control.Client, args []string) error {
	bytes, err := api.ParseBytes(args[1])
	if err != nil {
		return err
	}
	var operations uint64
	if _, err := fmt.Sscan(args[2], &operations); err != nil {
		return fmt.Errorf("%q operations in a second: %w", args[2], err)
	}
	return c.SetLimits(ctx, control.SetLimits{Name: args[0], Limits: control.Limits{BytesPerSecond: uint64(bytes), OperationsPerSecond: operations}})
}

func save(ctx context.Context, c *control.Client, args []string) error {
	var o control.Save
	flags := flag.NewFlagSet("save", flag.ContinueOnError)
	flags.BoolVar(&o.Track, "track", false, "")
	flags.BoolVar(&o.Changes, "changes", false, "")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if err := os.Mkdir(args[0], 0o700); err != nil {
		return err
	}
	f, err := openSnapshot(args[0], os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	defer f.State.Close()
	defer f.Memory.Close()
	return c.Save(ctx, o, f.State, f.Memory)
}
