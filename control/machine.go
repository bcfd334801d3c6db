package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/image/seed"
	"github.com/cleave-project/cleave/kernel"
)

// Kernels is what the controller needs of *kernel.Store to boot images in
// machines.
type Kernels interface {
	KernelStore
	Boot(ctx context.Context, kind api.Kind, arch, name string) (kernel.Boot, error)
}

// Memory of machines when the user says nothing.
const (
	defaultMemory         = 256 * api.MiB
	defaultSystemMemory   = 512 * api.MiB
	defaultFirmwareMemory = api.GiB
)

// Names of disks that the guest sees beside those of its root and volumes.
const (
	diskMedium = "cdrom"
	diskSeed   = "seed"
)

func isMachine(in *api.Instance) bool { return kindOf(in) != api.KindContainer }

func memoryOf(in *api.Instance) api.Bytes {
	usual := defaultMemory
	switch {
	case ownSystem(in):
		usual = defaultFirmwareMemory
	case in.Status.System:
		usual = defaultSystemMemory
	}
	return cmp.Or(in.Spec.Resources.Memory, usual)
}

// machineDir holds what a machine needs that is neither on its disks nor in
// its record: firmware variables, the TPM's state, the seed, saved memory.
func (c *Controller) machineDir(id string) string { return filepath.Join(c.Data, "machines", id) }

// sweepMachines deletes directories of machines without a record.
func (c *Controller) sweepMachines() error {
	entries, err := os.ReadDir(filepath.Join(c.Data, "machines"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if c.instances.ByID(e.Name()) == nil {
			errs = append(errs, os.RemoveAll(c.machineDir(e.Name())))
		}
	}
	return errors.Join(errs...)
}

// completed fills in what follows from the image, if it is on this host: a
// disk with a system of its own needs firmware, and a machine around it.
func (c *Controller) completed(ctx context.Context, in *api.Instance) error {
	m := &in.Spec.Machine
	if m.SecureBoot {
		m.Firmware = cmp.Or(m.Firmware, "uefi")
	}
	if in.Spec.Image == "" {
		if isMachine(in) {
			m.Firmware = cmp.Or(m.Firmware, "bios")
		}
		return nil
	}
	img, err := c.images.Get(ctx, in.Spec.Image)
	if err != nil {
		return nil // it may be to be had from a registry, which has no disks
	}
	if img.Type == api.ImageDisk {
		in.Spec.Kind = cmp.Or(in.Spec.Kind, api.KindVM)
		m.Firmware = cmp.Or(m.Firmware, img.Firmware, "bios")
		if m.CloudInit == nil {
			// The seed also says the name and the addresses, and brings the agent.
			m.CloudInit = &api.CloudInit{}
		}
	}
	return suits(in, img)
}

// suits refuses an image that can't be what the instance is made from.
func suits(in *api.Instance, img *api.Image) error {
	own := ownSystem(in)
	switch typ := cmp.Or(img.Type, api.ImageRoot); {
	case typ == api.ImageISO:
		return api.Errorf(api.CodeInvalid, "image %s is a medium and no root", in.Spec.Image).WithField("spec.image").
			WithHint("`cleave create --empty --disk 20GiB --iso %s` puts it into the drive of an empty machine", in.Spec.Image)
	case typ == api.ImageDisk && !isMachine(in):
		return api.Errorf(api.CodeUnsupported, "image %s is a disk with a system of its own, which a container can't boot", in.Spec.Image).
			WithField("spec.kind").WithHint("use --kind vm")
	case typ == api.ImageRoot && own:
		return api.Errorf(api.CodeInvalid, "image %s is a root file system without a boot loader, which firmware can't boot", in.Spec.Image).
			WithField("spec.machine.firmware").WithHint("leave out --boot: the host's kernel boots it")
	case typ == api.ImageDisk && in.Spec.Root.Size > 0 && in.Spec.Root.Size < img.DiskSize:
		return api.Errorf(api.CodeInvalid, "image %s is a disk of %s, which does not fit on one of %s", in.Spec.Image, img.DiskSize, in.Spec.Root.Size).
			WithField("spec.root.size").WithHint("give at least %s, or nothing", img.DiskSize)
	}
	return nil
}

// machine is what a guest with a kernel of its own gets beside what every
// guest has.
func (t *task) machine(ctx context.Context, s *engine.Spec, img *api.Image) (*engine.Machine, error) {
	c, in := t.c, t.in
	m := &engine.Machine{Arch: archOf(in), CPUs: cpusOf(in), Memory: memoryOf(in), Accel: in.Spec.Machine.Accel, Engine: in.Spec.Machine.Engine}
	if !ownSystem(in) {
		k, err := c.Kernels.Boot(ctx, kindOf(in), m.Arch, in.Spec.Machine.Kernel)
		if err != nil {
			return nil, err
		}
		m.Kernel = engine.Kernel{Name: k.Name, Image: k.Image, Initrd: k.Initrd, Args: k.Args, Version: k.Version, Modules: k.Modules}
		return m, nil
	}
	dir := c.machineDir(in.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory for the machine: %w", err)
	}
	m.Firmware = engine.Firmware{
		Type: in.Spec.Machine.Firmware, SecureBoot: in.Spec.Machine.SecureBoot, TPM: in.Spec.Machine.TPM,
		State: filepath.Join(dir, "firmware"), Order: in.Spec.Machine.BootOrder,
	}
	if m.Firmware.Order == nil {
		m.Firmware.Order = []string{"disk", "cdrom"}
	}
	if err := os.Mkdir(m.Firmware.State, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("directory for the firmware: %w", err)
	}
	medium, err := c.medium(ctx, in)
	if err != nil {
		return nil, err
	}
	// The drive is there also when it is empty, for media that come later.
	m.Disks = append(m.Disks, engine.Disk{ID: diskMedium, Path: medium, ReadOnly: true, CDROM: true})
	if in.Spec.Machine.CloudInit != nil {
		path := filepath.Join(dir, "seed.iso")
		if err := c.writeSeed(path, in, s); err != nil {
			return nil, err
		}
		m.Disks = append(m.Disks, engine.Disk{ID: diskSeed, Path: path, ReadOnly: true})
	}
	return m, nil
}

// sameArch refuses to run an image by a kernel of another architecture.
func sameArch(in *api.Instance, img *api.Image) error {
	_, arch, _ := strings.Cut(img.Platform, "/")
	arch, _, _ = strings.Cut(arch, "/")
	if arch == "" || arch == archOf(in) {
		return nil
	}
	return api.Errorf(api.CodeUnsupported, "image %s is for %s, the instance for %s", in.Spec.Image, arch, archOf(in)).WithField("spec.machine.arch").
		WithHint("choose an image that there is for %s; kind vm with --arch %s runs this one", archOf(in), arch)
}

// writeSeed makes the medium on which cloud-init finds who the guest is.
func (c *Controller) writeSeed(path string, in *api.Instance, s *engine.Spec) (err error) {
	cfg, err := c.seed(in, s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "seed-*")
	if err != nil {
		return fmt.Errorf("cloud-init seed: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := seed.Build(f, cfg); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (c *Controller) seed(in *api.Instance, s *engine.Spec) (seed.Config, error) {
	ci := in.Spec.Machine.CloudInit
	cfg := seed.Config{
		InstanceID: in.ID, Hostname: s.Hostname, UserData: ci.UserData, SSHKeys: ci.SSHKeys, NetworkConfig: ci.NetworkConfig,
	}
	if !ci.NoAgent && c.AgentFor != nil {
		var err error
		if cfg.Agent, err = c.AgentFor(archOf(in)); err != nil {
			return cfg, err
		}
	}
	for i, n := range s.NICs {
		net, err := c.networkOf(in.Project, in.Status.NICs[i].Network)
		if err != nil {
			return cfg, err
		}
		nic := seed.NIC{Name: n.Name, MAC: n.MAC, MTU: n.MTU, Search: []string{cmp.Or(net.Spec.Domain, "cleave")}}
		for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
			if p.IsValid() {
				nic.Addresses = append(nic.Addresses, p)
			}
		}
		for _, g := range []netip.Addr{n.Gateway4, n.Gateway6} {
			if g.IsValid() {
				nic.Gateways, nic.DNS = append(nic.Gateways, g), append(nic.DNS, g)
			}
		}
		cfg.NICs = append(cfg.NICs, nic)
	}
	return cfg, cfg.Check()
}
