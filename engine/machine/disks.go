package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine/jail"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// controlName is the control disk's in the runtime directory.
const controlName = "control.img"

// leastDisk is what an ext4 with a journal and a few files takes.
const leastDisk = 8 * api.MiB

// openDisk opens the disk of a guest that a monitor may open again by its
// descriptor, and so gives it to the monitor's user.
func openDisk(path string, readOnly bool, base uint32) (*os.File, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := give(f, int(base)+jail.ID); err != nil {
		f.Close()
		return nil, fmt.Errorf("give %s to the monitor: %w", path, err)
	}
	return f, nil
}

// give makes a file a user's, unless it is. The time of a change of the owner
// would say that somebody has changed the disk (engine.Tracker).
func give(f *os.File, owner int) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if s := st.Sys().(*syscall.Stat_t); int(s.Uid) == owner && int(s.Gid) == owner && st.Mode().Perm() == 0o600 {
		return nil
	}
	return errors.Join(f.Chown(owner, owner), f.Chmod(0o600))
}

// openImage opens a disk that guests share, and lets every monitor that has
// its descriptor read it; its directory keeps others away.
func openImage(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Mode().Perm()&0o004 == 0 {
		err = f.Chmod(st.Mode().Perm() | 0o444)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ownDisk is a disk in a volume's directory, which is made on first use: an
// ext4 with the directories. Errors call it what.
func ownDisk(ctx context.Context, what, path string, size api.Bytes, directories []string, readOnly bool, base uint32) (*os.File, error) {
	f, err := openDisk(path, readOnly, base)
	if errors.Is(err, os.ErrNotExist) {
		if err = format(ctx, what, path, size, directories); err == nil {
			f, err = openDisk(path, readOnly, base)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := lengthen(f, what, size, readOnly); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lengthen makes a disk that was given a larger size longer, by what its
// guest doesn't use yet. It never shrinks.
func lengthen(f *os.File, what string, size api.Bytes, readOnly bool) error {
	st, err := f.Stat()
	if err != nil || readOnly || st.Size() >= int64(size) {
		return err
	}
	if err := f.Truncate(int64(size)); err != nil {
		return notMade(what, size, err)
	}
	return nil
}

// format makes a new ext4 at path, whole or not at all. It is the one time
// that the host knows anything of what is on a guest's disk.
func format(ctx context.Context, what, path string, size api.Bytes, directories []string) error {
	if size < leastDisk {
		return api.Errorf(api.CodeInvalid, "make the %s: %s is too small for a file system", what, size).WithField("spec.root.size").
			WithHint("at least %s", leastDisk)
	}
	work, err := os.MkdirTemp("", "cleave-disk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return err
	}
	for _, d := range directories {
		if err := os.Mkdir(filepath.Join(tree, d), 0o755); err != nil {
			return err
		}
	}
	fresh := path + ".new" // of a start that was cut short too
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return notMade(what, size, err)
	}
	defer os.Remove(fresh)
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		return notMade(what, size, err)
	}
	if err := mkfs(ctx, fresh, work, tree); err != nil {
		return notMade(what, size, err)
	}
	if err := f.Sync(); err != nil {
		return notMade(what, size, err)
	}
	return os.Rename(fresh, path)
}

// config stands for the host's mke2fs.conf, so that every host makes the same
// disks. Without one, or without this much of it, mke2fs complains of that
// first, whatever is wrong (mke2fs.conf(5)).
const config = "[fs_types]\n\text4 = {\n\t\tfeatures = none\n\t}\n"

// features are what kernels since 4.4 know.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// mkfs formats a file with what is in tree. What can be left to the guest's
// kernel is: a new file is all zeros.
func mkfs(ctx context.Context, file, work, tree string) error {
	program, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		if program = "/sbin/mkfs.ext4"; !exists(program) {
			return api.Errorf(api.CodeUnsupported, "mkfs.ext4 is not on this host").WithHint("install e2fsprogs")
		}
	}
	conf := filepath.Join(work, "mke2fs.conf")
	if err := os.WriteFile(conf, []byte(config), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-q", "-F", "-t", "ext4", "-T", "default", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-d", tree,
		"-O", features, "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", file)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "MKE2FS_CONFIG=" + conf}
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	text := strings.Join(strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), "; ")
	for _, no := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		if strings.Contains(strings.ToLower(text), strings.ToLower(no.Error())) {
			err = no
		}
	}
	return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, strings.ReplaceAll(text, file, "the disk"))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// notMade says why a disk could not be made or made larger, and the way out.
func notMade(what string, size api.Bytes, err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		err = p.Err // the path says less than what does
	}
	code, hint := api.CodeInternal, "look for errors of the pool's disk in the kernel's log (dmesg), or give another size"
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("make the %s: %w", what, err)
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		code, hint = api.CodeNoSpace, "free some space in its pool, or give it a smaller size"
	case errors.Is(err, unix.EFBIG):
		code, hint = api.CodeInvalid, "the file system of its pool has no files as large: give it a smaller size, or use a pool of driver btrfs"
	case api.AsError(err).Code != api.CodeInternal:
		e := *api.AsError(err)
		e.Message = fmt.Sprintf("make the %s (%s): %s", what, size, e.Message)
		return &e
	}
	return api.Errorf(code, "make the %s (%s): %w", what, size, err).WithHint("%s", hint)
}

// controlDisk makes the control disk of a start.
func controlDisk(dir string, b *vitals.Boot, running bool, base uint32) (*os.File, error) {
	path := filepath.Join(dir, controlName)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, fmt.Errorf("make the control disk: %w", err)
	}
	f, err := openDisk(path, false, base)
	if err != nil {
		return nil, err
	}
	if err = f.Truncate(vitals.Size); err == nil {
		err = vitals.WriteBoot(f, b)
	}
	if err == nil && running {
		// A guest that goes on from its memory says nothing anew.
		err = vitals.WriteStatus(f, &vitals.Status{Phase: vitals.PhaseRunning, Boots: 1})
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make the control disk: %w", err)
	}
	return f, nil
}

// Control opens the control disk, for the monitor's engine.
func (g *Guest) Control() (*os.File, error) {
	return os.OpenFile(filepath.Join(g.Dir, controlName), os.O_RDWR|unix.O_NOFOLLOW, 0)
}

// readStatus is what a guest said last.
func readStatus(dir string) (vitals.Status, error) {
	f, err := os.Open(filepath.Join(dir, controlName))
	if err != nil {
		return vitals.Status{}, err
	}
	defer f.Close()
	return vitals.ReadStatus(f)
}

// openDisks opens everything in the plan that is a file, until the first
// error.
func (l *launch) openDisks(ctx context.Context) error {
	p, s := &l.plan, l.spec
	var failed error
	open := func(get func() (*os.File, error)) (f *os.File) {
		if failed != nil {
			return nil
		}
		if f, failed = get(); failed == nil {
			l.files = append(l.files, f)
		}
		return f
	}
	root := filepath.Join(s.Root.Dir, engine.RootDisk)
	if l.firmware() {
		p.Root = open(func() (*os.File, error) {
			f, err := openDisk(root, s.Root.ReadOnly, s.UIDBase)
			if err != nil {
				return nil, err
			}
			if err := lengthen(f, "root disk of "+s.Name, s.Root.Size, s.Root.ReadOnly); err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		})
	} else {
		p.Image = open(func() (*os.File, error) { return openImage(s.Image.EROFS) })
		p.Root = open(func() (*os.File, error) {
			return ownDisk(ctx, "root disk of "+s.Name, root, s.Root.Size, []string{"upper", "work"}, false, s.UIDBase)
		})
		p.Control = open(func() (*os.File, error) {
			b := l.boot()
			if err := keepBoot(p.Dir, b); err != nil {
				return nil, err
			}
			return controlDisk(p.Dir, b, s.Machine.Restore != "", s.UIDBase)
		})
		if s.Machine.Kernel.Modules != "" {
			p.Modules = open(func() (*os.File, error) { return openImage(s.Machine.Kernel.Modules) })
		}
	}
	for _, m := range s.Mounts {
		path := filepath.Join(m.Source, engine.VolumeDisk)
		p.Volumes = append(p.Volumes, open(func() (*os.File, error) {
			return ownDisk(ctx, "disk at "+m.Target+" of "+s.Name, path, m.Size, nil, m.ReadOnly, s.UIDBase)
		}))
	}
	for _, d := range s.Machine.Disks {
		p.Disks = append(p.Disks, open(func() (*os.File, error) { return openMedium(d) }))
	}
	if s.Machine.Restore != "" {
		p.Restore = open(func() (*os.File, error) { return os.Open(s.Machine.Restore) })
	}
	return failed
}

// openMedium opens a disk or medium; none is in an empty drive.
func openMedium(d engine.Disk) (*os.File, error) {
	if d.CDROM && d.Path == "" {
		return nil, nil
	}
	flags := os.O_RDWR
	if d.ReadOnly || d.CDROM {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	if err != nil {
		code := api.CodeInternal
		if errors.Is(err, os.ErrNotExist) {
			code = api.CodeNotFound
		}
		return nil, api.Errorf(code, "disk %s: %w", d.ID, err)
	}
	return f, nil
}
