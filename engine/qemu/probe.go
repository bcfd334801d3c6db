package qemu

import (
	"context"
	"os"
	"runtime"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// States of a finding.
const (
	ok      = "ok"
	limited = "limited"
	missing = "missing"
)

// minMemory is less than which Debian's kernel doesn't come up with our
// initramfs: 80 MiB do, 72 don't.
const minMemory = 96 * api.MiB

// Probe implements machine.Monitor.
func (m *monitor) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	caps := engine.Capabilities{
		Pause: true, Resize: true, WriteLimits: true, Disks: true, Firmware: true, Display: true, Plug: true, Save: true,
		MinMemory: minMemory, MinMemoryOf: map[string]api.Bytes{}, MaxCPUs: maxCPUs,
	}
	var findings []api.Finding
	add := func(name, state, detail, remedy string) {
		findings = append(findings, api.Finding{Area: "vm", Name: name, State: state, Detail: detail, Remedy: remedy})
	}
	for _, a := range archs {
		caps.MinMemoryOf[a.name] = a.memory
		path, err := m.tools.find(ctx, a)
		switch own := a.name == runtime.GOARCH; {
		case own && err != nil:
			caps.Reason = api.AsError(err)
			add("QEMU", missing, caps.Reason.Message, caps.Reason.Hint)
			return caps, findings
		case own:
			caps.Archs = append([]string{a.name}, caps.Archs...)
			add("QEMU", ok, m.tools.describe(path), "")
		case err == nil:
			caps.Archs = append(caps.Archs, a.name)
			add("architecture "+a.name, ok, "translated, by "+path, "")
		case api.IsCode(err, api.CodeUnsupported):
			add("architecture "+a.name, missing, api.AsError(err).Message, api.AsError(err).Hint)
		}
	}
	if caps.Archs == nil || caps.Archs[0] != runtime.GOARCH {
		caps.Reason = api.Errorf(api.CodeUnsupported, "virtual machines are not supported on hosts of architecture %s", runtime.GOARCH)
		add("QEMU", missing, caps.Reason.Message, "")
		return caps, findings
	}
	caps.Available = true
	if k := m.measureKVM(); k.usable {
		add("acceleration", ok, k.detail, "")
	} else {
		add("acceleration", limited, k.detail, k.remedy)
	}
	for _, f := range []struct {
		name   string
		secure bool
	}{{"UEFI", false}, {"Secure Boot", true}} {
		if _, err := findUEFI(m.tools.firmware, f.secure); err != nil {
			add(f.name, missing, api.AsError(err).Message, api.AsError(err).Hint)
		} else {
			add(f.name, ok, "", "")
		}
	}
	if _, err := os.Stat(swtpm); err != nil {
		add("TPM", missing, "no program for trusted platform modules", "install the package swtpm")
	} else {
		caps.TPM = true
		add("TPM", ok, "version 2.0 by swtpm", "")
	}
	return caps, findings
}
