package guest

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// errnoError makes an error that the other side can switch on.
func errnoError(err error, format string, args ...any) *api.Error {
	code := api.CodeInternal
	hint := ""
	var errno syscall.Errno
	errors.As(err, &errno)
	switch errno {
	case unix.ENOENT:
		code = api.CodeNotFound
	case unix.EEXIST:
		code = api.CodeExists
	case unix.EACCES, unix.EPERM:
		code = api.CodeForbidden
	case unix.EROFS:
		code, hint = api.CodeForbidden, "the file system is read-only in the guest"
	case unix.ENOSPC, unix.EDQUOT:
		code, hint = api.CodeNoSpace, "free space in the guest, or give it a larger disk"
	case unix.ENOTDIR, unix.EISDIR, unix.EINVAL, unix.ENAMETOOLONG, unix.ELOOP, unix.ENOTEMPTY:
		code = api.CodeInvalid
	case unix.EXDEV:
		code, hint = api.CodeInvalid, "a symbolic link or name leads out of the target directory"
	case unix.EBUSY, unix.ETXTBSY:
		code = api.CodeInUse
	}
	e := api.Errorf(code, format+": %w", append(args, err)...)
	if hint != "" {
		e = e.WithHint("%s", hint)
	}
	return e
}
