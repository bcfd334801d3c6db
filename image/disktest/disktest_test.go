package disktest

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/image/disk"
	"github.com/cleave-project/cleave/image/seed"
)

// patience ends a boot that hangs; emulation on a busy machine is slow.
const patience = 15 * time.Minute

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxoa3Nka2poc2tkamhma3NqZGhma3NqZGhma3Nq me@here"

func TestDiskIsWhatOthersMake(t *testing.T) {
	f, err := os.Open(Debian(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if h, err := disk.Check(t.Context(), f, st.Size(), ""); err != nil || h.Format != "raw" {
		t.Errorf("%+v, %v", h, err)
	}
	if got, err := disk.Firmware(f, st.Size()); err != nil || got != "bios" {
		t.Errorf("firmware %q, %v", got, err)
	}
}

// TestItBootsAndCloudInitReadsTheSeed is the disk under a bare QEMU.
func TestItBootsAndCloudInitReadsTheSeed(t *testing.T) {
	if testing.Short() {
		t.Skip("boots twice under emulation")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("install qemu-system-x86")
	}
	image := Debian(t)
	for _, tt := range []struct {
		firmware string
		args     []string
	}{
		{"bios", nil},
		{"uefi", []string{"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"}},
	} {
		t.Run(tt.firmware, func(t *testing.T) {
			if tt.args != nil {
				if _, err := os.Stat("/usr/share/OVMF/OVMF_CODE_4M.fd"); err != nil {
					t.Skip("install ovmf")
				}
			}
			dir := t.TempDir()
			Copy(t, image, filepath.Join(dir, "disk"))
			writeSeed(t, filepath.Join(dir, "seed.iso"))
			out := boot(t, dir, append(tt.args, "-drive", "if=virtio,format=raw,readonly=on,file="+filepath.Join(dir, "seed.iso")))
			missing := []string{}
			for _, want := range []string{"web login:", "(mo)", key, "10.9.8.7/24"} {
				if !strings.Contains(out, want) {
					missing = append(missing, want)
				}
			}
			if len(missing) > 0 {
				t.Errorf("its console doesn't show %q:\n%s", missing, out)
			}
		})
	}
}

func writeSeed(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = seed.Build(f, seed.Config{
		InstanceID: "abc", Hostname: "web", SSHKeys: []string{key},
		UserData: "#cloud-config\nusers: [default, {name: mo, shell: /bin/sh}]\nruncmd: ['(id mo; cat /home/debian/.ssh/authorized_keys; ip -4 a; echo all is done) >/dev/ttyS0 2>&1']\n",
		NICs: []seed.NIC{{
			Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.8.7/24")},
			Gateways: []netip.Addr{netip.MustParseAddr("10.9.8.1")}, DNS: []netip.Addr{netip.MustParseAddr("10.9.8.1")},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// boot runs the machine until the seed's command has run and returns its
// console.
func boot(t *testing.T, dir string, args []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append([]string{
		"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot",
		"-drive", "if=virtio,format=raw,cache=unsafe,file=" + filepath.Join(dir, "disk"),
		"-netdev", "user,id=n,restrict=on", "-device", "virtio-net-pci,netdev=n,mac=02:00:00:00:00:01,romfile=",
		"-serial", "stdio",
	}, args...)...)
	console := &console{ended: cancel}
	cmd.Stdout, cmd.Stderr = console, console
	start := time.Now()
	_ = cmd.Run()
	t.Logf("it took %v", time.Since(start).Round(time.Second))
	return console.b.String()
}

// console ends the machine when it has seen both the prompt and the command's
// end.
type console struct {
	b     bytes.Buffer
	ended func()
}

func (c *console) Write(p []byte) (int, error) {
	c.b.Write(p)
	if s := c.b.String(); strings.Contains(s, "all is done") && strings.Contains(s, "login:") {
		c.ended()
	}
	return len(p), nil
}
