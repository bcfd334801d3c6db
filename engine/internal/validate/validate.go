// Package validate checks what is asked for a guest beyond what package api
// can see, and translates it: against the host, and by rules that are the same
// for every wall.
package validate

import (
	"path"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/guests"
)

// Spec checks what every engine needs.
func Spec(s *engine.Spec) error {
	if !guests.IDPattern.MatchString(s.ID) {
		return api.Errorf(api.CodeInvalid, "%q is no instance id", s.ID)
	}
	if s.UIDBase == 0 || s.IDCount < 2000 {
		return api.Errorf(api.CodeInternal, "start %s: ids %d+%d are no range of its own", s.Name, s.UIDBase, s.IDCount)
	}
	for _, m := range s.Mounts {
		if err := Target(m.Target); err != nil {
			return err
		}
	}
	return nil
}

// Entry checks that there is an entry point.
func Entry(s *engine.Spec) error {
	if len(s.Proc.Args) == 0 || s.Proc.Args[0] == "" {
		return api.Errorf(api.CodeInvalid, "start %s: neither the image nor the instance names a program to run", s.Name).
			WithField("spec.entrypoint").WithHint("give a command")
	}
	return nil
}

// Target keeps volumes out of the kernel's file systems, and so out of
// the way of everything that reads them.
func Target(target string) error {
	clean := path.Clean("/" + target)
	first, _, _ := strings.Cut(clean[1:], "/")
	if !path.IsAbs(target) || clean == "/" || slices.Contains([]string{"proc", "sys", "dev"}, first) && clean != "/dev/shm" {
		return api.Errorf(api.CodeInvalid, "a volume can't be mounted at %q", target).WithField("spec.mounts").
			WithHint("choose an absolute path outside of /proc, /sys and /dev")
	}
	return nil
}
