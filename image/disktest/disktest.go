// Package disktest makes a disk for tests: Debian with cloud-init, its own
// kernel and boot loaders for BIOS and UEFI, as an installer would leave it.
// That takes a minute; so it is made once for a host and kept in the cache of
// who runs the tests.
package disktest

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/internal/sparse"
)

// Label is that of the root file system.
const Label = "disktest"

// programs are what Debian needs, with the packages that have them.
var programs = map[string]string{
	"mmdebstrap": "mmdebstrap", "grub-mkimage": "grub-common", "mkfs.ext4": "e2fsprogs", "mkfs.vfat": "dosfstools",
	"mcopy": "mtools", "sfdisk": "fdisk",
	"/usr/lib/grub/i386-pc/boot.img":      "grub-pc-bin",
	"/usr/lib/grub/x86_64-efi/moddep.lst": "grub-efi-amd64-bin",
}

// Debian returns the path of a raw disk, which must not be written to: Copy
// it. The test is skipped where a program is missing that is needed to make
// it.
func Debian(t testing.TB) string {
	t.Helper()
	for name, pkg := range programs {
		_, err := exec.LookPath(name)
		if strings.HasPrefix(name, "/") {
			_, err = os.Stat(name)
		}
		if err != nil {
			t.Skipf("no disk can be made for this test: install %s", pkg)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("no disk can be made for this test: only root can make a Debian")
	}
	path, err := debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Copy makes a file of the disk that the test may write to.
func Copy(t testing.TB, disk, to string) {
	t.Helper()
	src, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := sparse.Copy(t.Context(), dst, src, nil); err != nil {
		t.Fatal(err)
	}
}

//go:embed disktest.go
var recipe string

// cache is the directory in which disks are kept.
func cache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = filepath.Join(os.TempDir(), "cleave-cache")
	}
	dir = filepath.Join(dir, "cleave-tests")
	return dir, os.MkdirAll(dir, 0o755)
}

func debian(ctx context.Context) (string, error) {
	dir, err := cache()
	if err != nil {
		return "", err
	}
	lock, err := os.Create(filepath.Join(dir, "debian.lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(recipe))
	path := filepath.Join(dir, "debian-"+hex.EncodeToString(sum[:6])+".raw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	old, _ := filepath.Glob(filepath.Join(dir, "debian-*.raw"))
	for _, o := range old {
		_ = os.Remove(o)
	}
	work, err := os.MkdirTemp(dir, "work-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	b := &builder{ctx: ctx, dir: work}
	if err := b.build(); err != nil {
		return "", fmt.Errorf("make a disk for tests: %w", err)
	}
	return path, os.Rename(filepath.Join(work, "disk"), path)
}

type builder struct {
	ctx context.Context
	dir string
}

func (b *builder) run(args ...string) error {
	cmd := exec.CommandContext(b.ctx, args[0], args[1:]...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args[:min(len(args), 4)], " "), err, out[max(0, len(out)-2000):])
	}
	return nil
}

// Places on the disk, in sectors.
const (
	coreAt, coreSectors = 2048, 2048
	espAt, espSectors   = 4096, 16 << 11
	rootAt              = espAt + espSectors
	rootSectors         = 700 << 11
	endSectors          = 2048
)

func (b *builder) build() error {
	if err := b.tree(); err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(b.dir, "root/boot/vmlinuz-*"))
	if len(files) != 1 {
		return fmt.Errorf("the system has %d kernels", len(files))
	}
	release := strings.TrimPrefix(filepath.Base(files[0]), "vmlinuz-")
	boot := fmt.Sprintf("search.fs_label %[1]s root\nlinux /boot/vmlinuz-%[2]s root=LABEL=%[1]s ro quiet console=tty0 console=ttyS0\ninitrd /boot/initrd.img-%[2]s\nboot\n", Label, release)
	if err := os.WriteFile(filepath.Join(b.dir, "boot.cfg"), []byte(boot), 0o600); err != nil {
		return err
	}
	layout := fmt.Sprintf("label: gpt\nstart=%d, size=%d, type=21686148-6449-6E6F-744E-656564454649\nstart=%d, size=%d, type=uefi\nstart=%d, size=%d, type=linux\n",
		coreAt, coreSectors, espAt, espSectors, rootAt, rootSectors)
	if err := os.WriteFile(filepath.Join(b.dir, "layout"), []byte(layout), 0o600); err != nil {
		return err
	}
	modules := []string{"part_gpt", "part_msdos", "ext2", "linux", "search_label", "boot"}
	for _, step := range [][]string{
		{"truncate", "-s", fmt.Sprint(int64(rootAt+rootSectors+endSectors) * 512), "disk"},
		{"sh", "-c", "sfdisk -q disk <layout"},
		{"mkfs.ext4", "-q", "-L", Label, "-d", "root", "-E", fmt.Sprintf("offset=%d", rootAt*512), "disk", fmt.Sprint(rootSectors/2) + "k"},
		append([]string{"grub-mkimage", "-O", "i386-pc", "-p", "/boot/grub", "-c", "boot.cfg", "-o", "core", "biosdisk"}, modules...),
		append([]string{"grub-mkimage", "-O", "x86_64-efi", "-p", "/boot/grub", "-c", "boot.cfg", "-o", "grub.efi"}, modules...),
		{"truncate", "-s", fmt.Sprint(espSectors * 512), "esp"},
		{"mkfs.vfat", "-n", "ESP", "esp"},
		{"mmd", "-i", "esp", "::EFI", "::EFI/BOOT"},
		{"mcopy", "-i", "esp", "grub.efi", "::EFI/BOOT/BOOTX64.EFI"},
	} {
		if err := b.run(step...); err != nil {
			return err
		}
	}
	return b.loaders()
}

// config makes the system small and quick under emulation: what boots is of
// interest, not what a server needs.
const config = `datasource_list: [NoCloud, None]
cloud_init_modules: [bootcmd, write-files, set_hostname, users-groups, ssh]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user, final-message]
ssh_genkeytypes: []
`

// tree makes the files of the system.
func (b *builder) tree() error {
	hook := func(name, content string) string {
		return fmt.Sprintf("mkdir -p $1/%s && printf '%%b' '%s' >$1/%s", filepath.Dir(name), strings.ReplaceAll(content, "\n", `\n`), name)
	}
	args := []string{
		"mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory",
		"--include=systemd-sysv,udev,dbus,linux-image-cloud-amd64,cloud-init,iproute2",
		"--essential-hook=" + hook("etc/initramfs-tools/conf.d/list", "MODULES=list\n"),
		"--essential-hook=" + hook("etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\nsr_mod\nahci\nata_piix\next4\nisofs\n"),
		"--customize-hook=" + hook("etc/cloud/cloud.cfg.d/90-disktest.cfg", config),
		"--customize-hook=" + hook("etc/fstab", "LABEL="+Label+" / ext4 defaults 0 1\n"),
		"--customize-hook=" + hook("etc/hostname", "disktest\n"),
		`--customize-hook=chroot $1 systemctl enable -q systemd-networkd`,
		`--customize-hook=chroot $1 systemctl mask -q apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-networkd-wait-online.service systemd-pstore.service e2scrub_reap.service`,
		`--customize-hook=rm -f $1/etc/resolv.conf $1/etc/machine-id && : >$1/etc/machine-id`,
	}
	for _, dir := range []string{"doc", "man", "locale", "i18n"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
	}
	return b.run(append(args, "bookworm", "root")...)
}

// loaders put GRUB where BIOS and UEFI look for it, as grub-install would:
// that wants a block device.
func (b *builder) loaders() error {
	disk, err := os.OpenFile(filepath.Join(b.dir, "disk"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	esp, err := os.ReadFile(filepath.Join(b.dir, "esp"))
	if err != nil {
		return err
	}
	if err := sparse.WriteAt(disk, esp, espAt*512); err != nil {
		return err
	}
	boot, err := os.ReadFile("/usr/lib/grub/i386-pc/boot.img")
	if err != nil {
		return err
	}
	core, err := os.ReadFile(filepath.Join(b.dir, "core"))
	if err != nil {
		return err
	}
	if len(boot) != 512 || len(core) < 1024 || len(core) > coreSectors*512 {
		return errors.New("GRUB has an unexpected size")
	}
	core = append(core, bytes.Repeat([]byte{0}, (512-len(core)%512)%512)...)
	// Offsets of include/grub/i386/pc/boot.h: where the rest begins; and where
	// a BIOS that says to have booted from a floppy isn't believed.
	binary.LittleEndian.PutUint64(boot[0x5c:], coreAt)
	copy(boot[0x66:], "\x90\x90")
	// The last entry of the first sector's list of blocks.
	binary.LittleEndian.PutUint64(core[0x1f4:], coreAt+1)
	binary.LittleEndian.PutUint16(core[0x1fc:], uint16(len(core)/512-1))
	binary.LittleEndian.PutUint16(core[0x1fe:], 0x820)
	// The partition table that BIOS knows lies at the end of the first sector.
	if _, err := disk.WriteAt(boot[:440], 0); err != nil {
		return err
	}
	if _, err := disk.WriteAt(core, coreAt*512); err != nil {
		return err
	}
	return disk.Sync()
}
