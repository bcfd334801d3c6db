package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/image/disktest"
)

// firmwarePatience ends the boot of a whole system that hangs, under
// emulation.
const firmwarePatience = 20 * time.Minute

const sshKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxoa3Nka2poc2tkamhma3NqZGhma3NqZGhma3Nq me@here"

// userData has cloud-init make a user, and count its first boots.
const userData = `#cloud-config
users: [default, {name: mo, shell: /bin/sh}]
runcmd: ['echo once >>/root/firsts']
`

// TestDiskImages imports a disk that has a system of its own, boots it by
// both kinds of firmware, and exports it.
func TestDiskImages(t *testing.T) {
	if testing.Short() {
		t.Skip("boots whole systems under emulation")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("needs an emulator: %v (install qemu-system-x86)", err)
	}
	raw := disktest.Debian(t)
	h := newHost(t)
	dir := t.TempDir()
	qcow := filepath.Join(dir, "debian.qcow2")
	if out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", "-f", "raw", raw, qcow).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	h.do("image", "import", qcow, "debian-disk")
	// The same disk in another format is the same image.
	if out := h.do("image", "import", raw, "debian-again"); !strings.Contains(out, digestOf(t, h, "debian-disk")) {
		t.Errorf("as raw it is another image: %s", out)
	}
	backed := filepath.Join(dir, "backed.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-f", "qcow2", "-b", qcow, "-F", "qcow2", backed).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	h.refused("whole in itself", "image", "import", backed, "backed")
	h.refused("container can't boot", "launch", "debian-disk", "c", "--kind", "container")

	user := filepath.Join(dir, "user-data")
	if err := os.WriteFile(user, []byte(userData), 0o600); err != nil {
		t.Fatal(err)
	}
	h.do("launch", "debian-disk", "server", "--ssh-key", sshKey, "--user-data", user)
	h.agentComes("server")
	h.firstBootIsDone("server")
	if out := h.do("exec", "server", "--", "sh", "-c", "id -un mo; cat /home/debian/.ssh/authorized_keys"); !strings.HasPrefix(out, "mo\n") || !strings.Contains(out, sshKey) {
		t.Errorf("users and keys are %q", out)
	}
	if out := h.do("exec", "server", "--", "sh", "-c", "hostname; test -d /sys/firmware/efi && echo uefi; ip -4 -br address"); !regexp.MustCompile(`(?s)^server\n[^u].*eth0 .*UP.*` + regexp.QuoteMeta(h.show("server").Status.NICs[0].IPv4)).MatchString(out) {
		t.Errorf("it says %q", out)
	}
	h.refused("changes while it is read", "export", "server", "--file", filepath.Join(dir, "early.qcow2"))
	h.do("stop", "server")

	exported := filepath.Join(dir, "server.qcow2")
	h.do("export", "server", "--file", exported)
	if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", exported).CombinedOutput(); err != nil {
		t.Errorf("qemu-img check: %v: %s", err, out)
	}
	ova := filepath.Join(dir, "server.ova")
	h.do("export", "server", "--format", "ova", "--file", ova)
	h.do("image", "import", exported, "exported")
	if out := h.do("image", "import", ova, "as-ova"); !strings.Contains(out, digestOf(t, h, "exported")) {
		t.Errorf("the OVA holds another disk: %s", out)
	}

	// By UEFI, from what was exported; another instance, another first boot.
	h.do("launch", "exported", "second", "--boot", "uefi", "--user-data", user)
	h.agentComes("second")
	h.firstBootIsDone("second")
	if out := h.do("exec", "second", "--", "sh", "-c", "hostname; test -d /sys/firmware/efi && echo uefi; cat /root/firsts"); out != "second\nuefi\nonce\nonce\n" {
		t.Errorf("it says %q", out)
	}
	// What is for the first boot doesn't come again.
	h.do("restart", "second")
	h.agentComes("second")
	h.do("exec", "second", "--", "sh", "-c", "cloud-init status --wait >/dev/null; true")
	if out := h.do("exec", "second", "--", "cat", "/root/firsts"); out != "once\nonce\n" {
		t.Errorf("after a restart: %q", out)
	}
	h.do("delete", "--force", "server", "second")
}

func digestOf(t *testing.T, h *host, image string) string {
	t.Helper()
	out := h.do("image", "show", image, "-o", "json")
	m := regexp.MustCompile(`"digest": ?"(sha256:[0-9a-f]{64})"`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no digest in %s", out)
	}
	return m[1]
}

// agentComes waits until a system that boots by itself answers.
func (h *host) agentComes(name string) {
	h.t.Helper()
	var last result
	for end := time.Now().Add(firmwarePatience); time.Now().Before(end); time.Sleep(time.Second) {
		if last = h.try("exec", name, "--", "true"); last.code == 0 {
			return
		}
	}
	h.t.Fatalf("the agent of %s doesn't come: %s\n%s", name, last.err, tail([]byte(h.try("logs", name).out), 4000))
}

// firstBootIsDone waits until cloud-init has done the last of what the user
// data ask for.
func (h *host) firstBootIsDone(name string) {
	h.t.Helper()
	h.do("exec", name, "--", "sh", "-c", "cloud-init status --wait >/dev/null; test -e /root/firsts")
}
