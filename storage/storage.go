// Package storage keeps the writable file trees of guests: root volumes and
// named volumes, in pools. A pool is one driver over one place on the host.
// Each driver lives the same life: Open probes and provisions, then
// Create/Delete/Resize/... run, then Close; and each passes the suite in
// storagetest.
//
// Volume ids are chosen by the caller: lower-case letters, digits and
// hyphens. All calls are idempotent: creating what exists with the same size
// and deleting what is gone are no errors, so that work cut short by a crash
// is simply done again. A volume that was not created completely is not in
// List. Calls for different volumes may run at the same time.
package storage

import (
	"context"

	"github.com/cleave-project/cleave/api"
)

// Driver is one pool.
type Driver interface {
	// Create makes an empty volume of at most size bytes (0: no limit of its
	// own). Its root directory is owned by host id 0, mode 0755.
	Create(ctx context.Context, id string, size api.Bytes) error
	// Delete removes the volume and all it holds.
	Delete(ctx context.Context, id string) error
	// Resize changes the limit. Below what is in use is an error.
	Resize(ctx context.Context, id string, size api.Bytes) error
	// Usage is what the volume holds and may hold.
	Usage(ctx context.Context, id string) (used, size api.Bytes, err error)
	// Path makes the volume reachable and returns its root directory.
	Path(ctx context.Context, id string) (string, error)
	// Release says that no guest uses the path any more.
	Release(ctx context.Context, id string) error
	// List names the volumes.
	List(ctx context.Context) ([]string, error)
	// Status is read often and must be cheap.
	Status(ctx context.Context) (api.PoolStatus, error)
	// Close stops the driver; guests keep running on what is mounted.
	Close() error
	// Unmount is Close for a host that goes down: no guest runs any more, and
	// the mounts and loop devices of the pool and its volumes go from the
	// host. The data stays, and Open finds it again.
	Unmount(ctx context.Context) error
	// Destroy takes the pool apart (mounts, loop device, loop file) if it
	// holds no volume.
	Destroy(ctx context.Context) error
}

// Config is what a driver opens.
type Config struct {
	Name   string // of the pool; names loop file and mount point
	Source string // directory that holds the pool
	Run    string // runtime directory for mount points
	Size   api.Bytes
}
