package image

import (
	"context"
	"io"
	"os"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/disk"
)

// ImportDisk brings a disk or an installer's medium to this host, converted
// to a raw file. Format is one of disk.Formats; empty has it found out. A
// regular file in r is read where it is.
func (s *Store) ImportDisk(ctx context.Context, r io.Reader, name, format string, p Progress) (*api.Image, error) {
	return nil, api.Errorf(api.CodeUnsupported, "disks can't be imported")
}

// Disk is the path of the raw file of an image of type disk or iso; empty if
// there is no such image.
func (s *Store) Disk(digest string) string {
	return ""
}

// ExportDisk writes the raw disk from, which nobody writes to meanwhile, in
// one of disk.ExportFormats.
func (s *Store) ExportDisk(ctx context.Context, from *os.File, m disk.Machine, format string, w io.Writer) error {
	return api.Errorf(api.CodeUnsupported, "disks can't be exported")
}
