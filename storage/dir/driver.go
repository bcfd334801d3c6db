// Package dir is under construction in this commit: its exported signatures
// are final, Open refuses.
package dir

import (
	"context"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage"
)

// Open opens the pool, and makes it if it isn't there.
func Open(ctx context.Context, c storage.Config) (storage.Driver, error) {
	return nil, api.Errorf(api.CodeUnsupported, "open pool %q in %s: driver is not built yet", c.Name, c.Source)
}

// Probe tells what this host can do for a pool in dir.
func Probe(ctx context.Context, dir string) []api.Finding { return nil }
