package jail

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// againPrefix begins the first argument of a program that executes itself
// anew by way of this one. The dot makes it a parameter that a kernel doesn't
// pass on to its first process.
const againPrefix = "cleave.again="

// ArgAgain is the first argument, after a name that leads to this program, by
// which it closes all descriptors from files on and executes exe. User Mode
// Linux reboots by executing its own name and arguments, but leaves open what
// it had opened: the second kernel finds its network devices in use, by
// itself.
func ArgAgain(exe string, files int) string {
	return fmt.Sprintf("%s%d:%s", againPrefix, files, exe)
}

// IsAgain tells whether args, without the program's name, are for Again.
func IsAgain(args []string) bool { return len(args) > 0 && strings.HasPrefix(args[0], againPrefix) }

// Again does what ArgAgain says, with the same arguments. It returns with the
// reason why it can't.
func Again(args, env []string) error {
	number, exe, ok := strings.Cut(strings.TrimPrefix(args[1], againPrefix), ":")
	files, err := strconv.ParseUint(number, 10, 31)
	if err != nil || !ok {
		return fmt.Errorf("%q doesn't say what to execute", args[1])
	}
	if err := unix.CloseRange(uint(files), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	return fmt.Errorf("execute %s: %w", exe, unix.Exec(exe, args, env))
}
