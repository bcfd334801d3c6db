package control

import (
	"context"
	"io"
	"path/filepath"

	"github.com/cleave-project/cleave/api"
)

// inUse are the digests that instances were made from.
func (c *Controller) inUse() map[string][]string {
	used := map[string][]string{}
	for _, in := range c.instances.All() {
		for _, digest := range []string{in.Status.Digest, c.mediumDigest(in)} {
			if digest != "" {
				used[digest] = append(used[digest], in.Project+"/"+in.Name)
			}
		}
	}
	return used
}

// mediumDigest is the image in the instance's drive; empty for none.
func (c *Controller) mediumDigest(in *api.Instance) string {
	iso := in.Spec.Machine.ISO
	if iso == "" || filepath.IsAbs(iso) {
		return ""
	}
	img, err := c.images.Get(c.ctx, iso)
	if err != nil {
		return ""
	}
	return img.Digest
}

func keys(m map[string][]string) map[string]bool {
	set := map[string]bool{}
	for k := range m {
		set[k] = true
	}
	return set
}

// PullImage has an image brought from its registry.
func (c *Controller) PullImage(ctx context.Context, req api.ImagePull) (*api.Operation, error) {
	return c.runOperation(ctx, "image.pull", req.Reference, func(ctx context.Context, p func(string, int64, int64)) (string, error) {
		img, err := c.images.Pull(ctx, req, p)
		return c.imageMade("image.pulled", req.Reference, img, err)
	})
}

// BuildImage has an image made by the system's bootstrap tool.
func (c *Controller) BuildImage(ctx context.Context, req api.ImageBuild) (*api.Operation, error) {
	return c.runOperation(ctx, "image.build", req.Base, func(ctx context.Context, p func(string, int64, int64)) (string, error) {
		img, err := c.images.Build(ctx, req, p)
		return c.imageMade("image.built", req.Base, img, err)
	})
}

// ImportImage takes an archive in, or a disk, of a format or of one to be
// found out. The caller's stream is its progress.
func (c *Controller) ImportImage(ctx context.Context, name, format string, r io.Reader) (img *api.Image, err error) {
	if format == "" {
		img, err = c.images.Import(ctx, r, name, "", nil)
	} else {
		img, err = c.images.ImportDisk(ctx, r, name, format, nil)
	}
	_, err = c.imageMade("image.imported", name, img, err)
	return img, err
}

func (c *Controller) imageMade(event, name string, img *api.Image, err error) (string, error) {
	if err != nil {
		return "", err
	}
	c.emit(event, &api.Meta{Name: name, ID: img.Digest}, "", nil)
	return img.Digest, nil
}

// Images lists the images of this host.
func (c *Controller) Images(ctx context.Context) ([]api.Image, error) {
	list, err := c.images.List(ctx)
	if err != nil {
		return nil, err
	}
	used := c.inUse()
	for i := range list {
		list[i].UsedBy = used[list[i].Digest]
	}
	return list, nil
}

// Image finds an image by reference or digest.
func (c *Controller) Image(ctx context.Context, ref string) (*api.Image, error) {
	img, err := c.images.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	n := *img
	n.UsedBy = c.inUse()[img.Digest]
	return &n, nil
}

// DeleteImage takes a name from an image, and removes the image with its
// last name. One that instances were made from stays; force takes its names.
func (c *Controller) DeleteImage(ctx context.Context, ref string, force bool) error {
	c.imageUse.Lock()
	defer c.imageUse.Unlock()
	img, err := c.images.Get(ctx, ref)
	if err != nil {
		return err
	}
	used := c.inUse()
	if users := used[img.Digest]; len(users) > 0 && force {
		if err := c.images.Untag(ctx, img.Digest); err != nil {
			return err
		}
		c.emit("image.untagged", &api.Meta{Name: ref, ID: img.Digest}, "kept for "+fmtList(users), nil)
		return nil
	}
	if err := c.images.Delete(ctx, ref, keys(used)); api.IsCode(err, api.CodeInUse) {
		return api.Errorf(api.CodeInUse, "image %s is used by %s", ref, fmtList(used[img.Digest])).
			WithHint("delete those instances first; --force takes the image's names and keeps it for them")
	} else if err != nil {
		return err
	}
	if _, err := c.images.Get(ctx, img.Digest); err != nil {
		c.ForgetImage(img.Digest)
	}
	c.emit("image.deleted", &api.Meta{Name: ref, ID: img.Digest}, "", nil)
	return nil
}

// ExportImage writes an image as an archive, or as a disk.
func (c *Controller) ExportImage(ctx context.Context, ref, format string, w io.Writer) error {
	return c.images.Export(ctx, ref, format, w)
}

// PruneImages removes images that have no name and no instance, and what
// interrupted work left behind.
func (c *Controller) PruneImages(ctx context.Context) (api.Bytes, []string, error) {
	c.imageUse.Lock()
	defer c.imageUse.Unlock()
	freed, digests, err := c.images.Collect(ctx, keys(c.inUse()))
	for _, d := range digests {
		c.ForgetImage(d)
	}
	return freed, digests, err
}
