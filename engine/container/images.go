package container

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// images holds one file system instance for each image in use, so that all
// guests of an image share its pages. An image nobody uses stays for the next
// guest until forget, or until there are too many.
type images struct {
	feature *features

	mu   sync.Mutex
	open map[string]*image // by digest
	used map[string]string // guest id to digest
	tick uint64
}

// image is an EROFS image that is ready to be mounted.
type image struct {
	mount *os.File // detached, to be cloned; nil where the kernel can't
	loop  *os.File // loop device, to be mounted again; the kernel shares the instance
	users int
	last  uint64
}

// idleImages is how many unused images stay open.
const idleImages = 16

func newImages(f *features) *images {
	return &images{feature: f, open: map[string]*image{}, used: map[string]string{}}
}

// mount returns a detached mount of the image for a guest that uses it until
// release(id).
func (im *images) mount(id string, spec engine.Image) (*os.File, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	i := im.open[spec.Digest]
	if i == nil {
		var err error
		if i, err = im.openImage(spec.EROFS); err != nil {
			return nil, fmt.Errorf("mount image %s: %w", spec.Digest, err)
		}
		im.open[spec.Digest] = i
	}
	m, err := i.clone()
	if err != nil {
		return nil, fmt.Errorf("mount image %s: %w", spec.Digest, err)
	}
	if im.used[id] != spec.Digest {
		im.releaseLocked(id)
		im.used[id] = spec.Digest
		i.users++
	}
	return m, nil
}

func (im *images) openImage(path string) (*image, error) {
	if im.feature.fileEROFS && im.feature.cloneDetached {
		m, err := mountfd.New("erofs").String("source", path).Flag("ro").Mount(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV)
		switch {
		case err == nil:
			return &image{mount: m}, nil
		case !errors.Is(err, unix.ENOTBLK):
			return nil, imageError(path, err)
		}
		// ENOTBLK: built without EROFS_FS_BACKED_BY_FILE, or before 6.12.
		im.feature.fileEROFS = false
	}
	loop, err := loopDevice(path)
	if err != nil {
		return nil, err
	}
	return &image{loop: loop}, nil
}

func imageError(path string, err error) error {
	if errors.Is(err, unix.ENODEV) {
		return api.Errorf(api.CodeUnsupported, "mount %s: this kernel has no EROFS", path).
			WithHint("use a kernel with CONFIG_EROFS_FS, or load its module")
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG) {
		return api.Errorf(api.CodeCorrupt, "mount %s: %w", path, err).WithHint("pull or import the image again")
	}
	return err
}

// clone returns a mount of the image of its own.
func (i *image) clone() (*os.File, error) {
	if i.mount != nil {
		return mountfd.Clone(i.mount, "", false)
	}
	m, err := mountfd.New("erofs").String("source", i.loop.Name()).Flag("ro").Mount(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, imageError(i.loop.Name(), err)
	}
	return m, nil
}

// release says that a guest is gone.
func (im *images) release(id string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.releaseLocked(id)
}

func (im *images) releaseLocked(id string) {
	digest, ok := im.used[id]
	if !ok {
		return
	}
	delete(im.used, id)
	i := im.open[digest]
	i.users--
	im.tick++
	i.last = im.tick
	im.trim()
}

// trim closes the longest unused images when there are too many.
func (im *images) trim() {
	idle, oldest := 0, ""
	for d, i := range im.open {
		if i.users > 0 {
			continue
		}
		idle++
		if oldest == "" || i.last < im.open[oldest].last {
			oldest = d
		}
	}
	if idle > idleImages {
		im.open[oldest].close()
		delete(im.open, oldest)
	}
}

// forget closes an unused image, so that its file's space can be freed.
func (im *images) forget(digest string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if i := im.open[digest]; i != nil && i.users == 0 {
		i.close()
		delete(im.open, digest)
	}
}

func (im *images) close() {
	im.mu.Lock()
	defer im.mu.Unlock()
	for d, i := range im.open {
		i.close()
		delete(im.open, d)
	}
}

func (i *image) close() {
	if i.mount != nil {
		i.mount.Close()
	}
	if i.loop != nil {
		i.loop.Close()
	}
}

// ForgetImage lets go of an image that no guest uses, before its file is
// deleted: a mounted file keeps its space.
func (e *Engine) ForgetImage(digest string) { e.images.forget(digest) }

// loopDevice attaches a file to a free loop device, read-only, which goes
// away with its last user.
func loopDevice(path string) (*os.File, error) {
	back, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, api.Errorf(api.CodeUnsupported, "mount %s: the kernel mounts no EROFS files and has no loop devices: %w", path, err)
	}
	defer ctl.Close()
	for range 64 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(back.Fd())}
		cfg.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		if err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg); err == nil {
			return dev, nil
		}
		dev.Close()
		if err != unix.EBUSY { // EBUSY: somebody else was faster
			return nil, fmt.Errorf("attach %s to %s: %w", path, dev.Name(), err)
		}
	}
	return nil, api.Errorf(api.CodeBusy, "attach %s to a loop device: others took each free one", path)
}
