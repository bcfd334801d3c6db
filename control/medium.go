package control

import (
	"cmp"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/disk"
)

// medium finds what is in the instance's drive; empty for nothing.
func (c *Controller) medium(ctx context.Context, in *api.Instance) (string, error) {
	iso := in.Spec.Machine.ISO
	if iso == "" || filepath.IsAbs(iso) {
		if iso != "" {
			if _, err := os.Stat(iso); err != nil {
				return "", api.Errorf(api.CodeNotFound, "medium %s: %w", iso, err).WithField("spec.machine.iso").
					WithHint("bring it back, or `cleave eject %s`", in.Name)
			}
		}
		return iso, nil
	}
	img, err := c.images.Get(ctx, iso)
	if err != nil {
		return "", api.AsError(err).WithField("spec.machine.iso")
	}
	if img.Type != api.ImageISO {
		return "", api.Errorf(api.CodeInvalid, "image %s is no medium for a CD drive", iso).WithField("spec.machine.iso").
			WithHint("`cleave image import FILE.iso` makes one")
	}
	return c.images.Disk(img.Digest), nil
}

// fitsDrive refuses what is no medium before it is put into the drive. The
// note is for a machine that is to boot from one that nothing boots from.
func (c *Controller) fitsDrive(ctx context.Context, in *api.Instance) (note string, err error) {
	iso := in.Spec.Machine.ISO
	if iso == "" {
		return "", nil
	}
	path, err := c.medium(ctx, in)
	if err != nil {
		return "", err
	}
	firmware, err := lookAtMedium(ctx, path)
	if err != nil {
		e := *api.AsError(err)
		e.Message, e.Field, e.Hint = "medium "+iso+": "+e.Message, "spec.machine.iso", cmp.Or(e.Hint, "get the file anew")
		return "", &e
	}
	if firmware == "" && in.Spec.Image == "" && in.Status.Started == nil && !slices.Contains(in.Spec.Machine.BootOrder, "network") {
		return "medium " + iso + " has no boot record: nothing boots from it, and the disk is empty", nil
	}
	return "", nil
}

func lookAtMedium(ctx context.Context, path string) (firmware string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd) // a drive of the host's has a size too
	if err != nil {
		return "", err
	}
	return disk.Medium(ctx, f, size)
}
