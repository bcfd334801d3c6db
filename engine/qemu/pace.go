package qemu

import (
	"context"
	"encoding/json"
	"os"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// QEMU holds its guest's limits of disk I/O by itself: the disks have a group
// in common that lets requests wait (docs/throttle.txt of QEMU). The cgroup
// can't: what a monitor writes is in the host's page cache first. With cgroup
// version 1, which doesn't know whose that is, 240 MiB/s were measured under a
// limit of 4.
const paceGroup = "limits"

// pace is the group's limits, 0 being none (ThrottleLimits of
// qapi/block-core.json).
type pace struct {
	ReadBytes  int64 `json:"bps-read"`
	WriteBytes int64 `json:"bps-write"`
	Reads      int64 `json:"iops-read"`
	Writes     int64 `json:"iops-write"`
}

func paceOf(r api.Resources) pace {
	return pace{ReadBytes: int64(r.DiskRead), WriteBytes: int64(r.DiskWrite), Reads: r.DiskReadIO, Writes: r.DiskWriteO}
}

// pace adds the group.
func (c *commandLine) pace(r api.Resources) {
	b, err := json.Marshal(struct {
		Type   string `json:"qom-type"`
		ID     string `json:"id"`
		Limits pace   `json:"limits"`
	}{"throttle-group", paceGroup, paceOf(r)})
	if err != nil {
		panic(err) // it has only strings and numbers
	}
	c.add("-object", string(b))
	c.Paced = true
}

func setPace(ctx context.Context, c *qmp.Client, r api.Resources) error {
	return c.Execute(ctx, "qom-set", map[string]any{"path": "/objects/" + paceGroup, "property": "limits", "value": paceOf(r)}, nil)
}

// newDisk describes a disk that the guest's limits hold for.
func newDisk(name, path string, f *os.File, readOnly bool) node {
	file := newNode("", path, f, readOnly)
	return node{Driver: "throttle", Name: name, ReadOnly: readOnly, Discard: file.Discard, Group: paceGroup, File: &file}
}
