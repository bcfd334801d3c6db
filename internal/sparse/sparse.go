// Package sparse copies large files without filling their holes.
package sparse

import (
	"context"
	"os"
)

// Copy makes dst, an empty file, what src is: sharing its blocks where the
// file system can, else copying data and leaving holes. Progress is told bytes
// of data that are done; it may be nil.
func Copy(ctx context.Context, dst, src *os.File, progress func(done, total int64)) error {
	return nil
}
