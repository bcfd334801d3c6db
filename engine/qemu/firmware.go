package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
)

// firmwareDir is where packages of firmware describe what they brought
// (docs/interop/firmware.json of QEMU).
const firmwareDir = "/usr/share/qemu/firmware"

// q35 is the machine of systems of their own. Its devices by default are
// those of a PC; what only old systems look for is off, and so is sleeping, out
// of which nobody could wake it.
const q35 = "q35,vmport=off,mem-merge=off,dump-guest-core=off"

// firmware is what boots a system of its own.
type firmware struct {
	uefi   bool
	secure bool
	code   *os.File // UEFI's program and variables
	vars   *os.File
	format string   // of the code's file
	order  []string // disk, cdrom, network
	// maxCPUs is how many CPUs the machine has room for.
	maxCPUs int
	tpm     *tpm
}

func (f *firmware) board() string {
	b := q35
	if f.uefi {
		b += ",pflash0=code,pflash1=vars"
	}
	if f.secure {
		b += ",smm=on"
	}
	return b
}

// boot is the option that gives a device its place in the boot order.
func (f *firmware) boot(device string) []string {
	if i := slices.Index(f.order, device); i >= 0 {
		return []string{"bootindex", fmt.Sprint(i + 1)}
	}
	return nil
}

// ownSystem adds what a system of its own finds in its machine.
func (c *commandLine) ownSystem(p *machine.Plan, f *firmware) {
	if f.uefi {
		for _, flash := range []struct {
			name     string
			file     *os.File
			format   string
			readOnly bool
		}{{"code", f.code, f.format, true}, {"vars", f.vars, "raw", false}} {
			file := flash.name + "-file"
			c.blockdev(file, flash.file, flash.readOnly)
			c.add("-blockdev", fmt.Sprintf(`{"driver":%q,"node-name":%q,"file":%q,"read-only":%t}`, flash.format, flash.name, file, flash.readOnly))
		}
	}
	if f.secure {
		c.add("-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	c.add("-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1",
		"-boot", "menu=off,strict=on", "-rtc", "base=utc", "-vnc", "none")
	c.device("VGA", "id", "video")
	c.device("qemu-xhci", "id", "usb")
	c.device("usb-tablet", "bus", "usb.0")
	c.device("pvpanic")
	c.ports(8, "10")
	c.paced(machine.RoleRoot, p.Root, false)
	c.disk(machine.RoleRoot, f.boot("disk")...)
	drives := 0
	for i, d := range p.Spec.Machine.Disks {
		if !d.CDROM {
			c.paced(d.ID, p.Disks[i], d.ReadOnly)
			c.disk(d.ID)
			continue
		}
		pairs := []string{"id", diskID(d.ID), "bus", fmt.Sprintf("ide.%d", drives)}
		if p.Disks[i] != nil {
			label := ""
			if drives == 0 {
				label = mediumLabel
			}
			c.labelled(label, d.ID, p.Disks[i], true)
			pairs = append(pairs, "drive", d.ID)
		}
		if drives == 0 {
			pairs = append(pairs, f.boot("cdrom")...)
		}
		c.device("ide-cd", pairs...)
		drives++
	}
	for i, v := range p.Volumes {
		name := machine.DiskName(machine.RoleVolume, i)
		c.paced(name, v, p.Mounts[i].ReadOnly)
		c.disk(name)
	}
	if f.tpm != nil {
		c.trustedModule(f.tpm)
	}
}

// description is of one firmware.
type description struct {
	Mapping struct {
		Device     string `json:"device"`
		Executable flash  `json:"executable"`
		NVRAM      flash  `json:"nvram-template"`
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
}

type flash struct {
	Filename string `json:"filename"`
	Format   string `json:"format"`
}

func (d *description) has(feature string) bool { return slices.Contains(d.Features, feature) }

// fits tells whether it is UEFI for our machine with or without Secure Boot.
func (d *description) fits(secure bool) bool {
	if d.Mapping.Device != "flash" || d.Mapping.NVRAM.Format != "raw" || !slices.Contains([]string{"raw", "qcow2"}, d.Mapping.Executable.Format) {
		return false
	}
	if secure != (d.has("secure-boot") && d.has("enrolled-keys")) || !secure && d.has("requires-smm") {
		return false
	}
	for _, t := range d.Targets {
		if t.Architecture == "x86_64" && slices.ContainsFunc(t.Machines, func(m string) bool {
			ok, err := path.Match(m, "pc-q35-6.2")
			return ok && err == nil
		}) {
			return true
		}
	}
	return false
}

// findUEFI looks for firmware in a directory of descriptions, the first in
// the order of their names.
func findUEFI(dir string, secure bool) (*description, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		d := &description{}
		if json.Unmarshal(b, d) == nil && d.fits(secure) {
			return d, nil
		}
	}
	what := "UEFI firmware for virtual machines"
	if secure {
		what += " with the makers' keys enrolled"
	}
	return nil, api.Errorf(api.CodeUnsupported, "this host has no %s", what).
		WithField("spec.machine.firmware").WithHint("install the package ovmf (edk2-ovmf)")
}

// openFirmware opens what boots a machine, and makes its state on first use.
func openFirmware(dir string, f engine.Firmware) (_ *firmware, err error) {
	out := &firmware{uefi: f.Type == "uefi", secure: f.SecureBoot, order: f.Order}
	if !out.uefi {
		return out, nil
	}
	d, err := findUEFI(dir, f.SecureBoot)
	if err != nil {
		return nil, err
	}
	out.format = d.Mapping.Executable.Format
	if out.code, err = os.Open(d.Mapping.Executable.Filename); err != nil {
		return nil, fmt.Errorf("open the firmware: %w", err)
	}
	// With the keys are different variables from those without.
	name := "vars.fd"
	if f.SecureBoot {
		name = "vars-secure.fd"
	}
	if out.vars, err = openVariables(filepath.Join(f.State, name), d.Mapping.NVRAM.Filename); err != nil {
		out.close()
		return nil, err
	}
	return out, nil
}

func (f *firmware) close() {
	for _, file := range []*os.File{f.code, f.vars} {
		if file != nil {
			file.Close()
		}
	}
	if f.tpm != nil {
		f.tpm.close()
	}
}

// openVariables opens a machine's UEFI variables, which begin as a copy of
// the firmware's.
func openVariables(path, template string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	src, err := os.Open(template)
	if err != nil {
		return nil, fmt.Errorf("open the firmware's variables: %w", err)
	}
	defer src.Close()
	part := path + ".part"
	dst, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(dst, src); err == nil {
		if err = dst.Sync(); err == nil {
			err = os.Rename(part, path)
		}
	}
	if err != nil {
		dst.Close()
		_ = os.Remove(part)
		return nil, fmt.Errorf("make the machine's UEFI variables: %w", err)
	}
	return dst, nil
}
