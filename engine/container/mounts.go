package container

import (
	"os"
	"path/filepath"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// openSource opens what a volume or host directory is, as a detached mount.
func openSource(m engine.Mount) (*os.File, error) {
	path, err := filepath.EvalSymlinks(m.Source)
	if err == nil {
		var f *os.File
		if f, err = mountfd.ClonePath(path); err == nil {
			return f, nil
		}
	}
	return nil, api.Errorf(api.CodeNotFound, "mount %s at %s in the guest: %w", m.Source, m.Target, err).WithField("spec.mounts")
}
