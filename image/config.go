package image

import (
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cleave-project/cleave/api"
)

// imageConfig takes over what Cleave obeys of a configuration (OCI image-spec
// config.md, and Docker's health check extension).
func imageConfig(c v1.Config) api.ImageConfig {
	return api.ImageConfig{
		Entrypoint:   c.Entrypoint,
		Cmd:          c.Cmd,
		Env:          c.Env,
		User:         c.User,
		WorkDir:      c.WorkingDir,
		StopSignal:   c.StopSignal,
		Volumes:      slices.Sorted(maps.Keys(c.Volumes)),
		ExposedPorts: slices.Sorted(maps.Keys(c.ExposedPorts)),
		Labels:       c.Labels,
		Health:       healthCheck(c.Healthcheck, c.Shell),
	}
}

// healthCheck translates Docker's: NONE turns a check off, as an empty
// command does; CMD-SHELL runs in the image's shell.
func healthCheck(h *v1.HealthConfig, shell []string) *api.HealthCheck {
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	check := &api.HealthCheck{
		IntervalSeconds: seconds(h.Interval),
		TimeoutSeconds:  seconds(h.Timeout),
		StartSeconds:    seconds(h.StartPeriod),
		Retries:         max(h.Retries, 0),
	}
	switch args := h.Test[1:]; h.Test[0] {
	case "CMD":
		check.Command = args
	case "CMD-SHELL":
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		check.Command = append(slices.Clone(shell), strings.Join(args, " "))
	case "NONE":
	default:
		// Docker before 1.12.1 wrote bare commands.
		check.Command = h.Test
	}
	return check
}

// seconds rounds up: a check every 100 ms becomes one every second, not one
// at the default interval.
func seconds(d time.Duration) int {
	if d <= 0 {
		return 0
	}
	return int((d + time.Second - 1) / time.Second)
}

// inits are programs that expect to be the first process of a whole system.
// /init is the entry point of s6-overlay images.
var (
	initPaths = []string{"/init", "/sbin/init", "/usr/sbin/init", "/bin/init", "/usr/bin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"}
	initNames = []string{"systemd", "openrc-init", "runit", "runit-init", "dinit", "finit", "sysvinit"}
)

// isSystem tells whether an image's entry point is an init system. lookup
// follows symbolic links in the image's tree.
func isSystem(c api.ImageConfig, lookup func(string) string) bool {
	args := append(slices.Clone(c.Entrypoint), c.Cmd...)
	if len(args) == 0 {
		return false
	}
	for _, p := range []string{path.Clean(args[0]), lookup(args[0])} {
		if slices.Contains(initPaths, p) || slices.Contains(initNames, path.Base(p)) {
			return true
		}
	}
	return false
}

func isBusybox(at string) bool { return strings.HasPrefix(path.Base(at), "busybox") }

// stopSignal is how an init at a path is asked to shut the system down:
// systemd's own signal (systemd(1), "SIGRTMIN+3"), else what others agree on.
func stopSignal(at string) string {
	if path.Base(at) == "systemd" {
		return "SIGRTMIN+3"
	}
	return "SIGTERM"
}
