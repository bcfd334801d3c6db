package vsock

import (
	"fmt"
	"net"
	"os"
)

// Unix has guests reach PATH_P for port P, and the host's programs reach the
// guest by PATH, which must not exist.
func Unix(path string) (dial func(port uint32) (net.Conn, error), l net.Listener, err error) {
	l, err = net.Listen("unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("listen for connections to the guest: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, nil, err
	}
	return func(port uint32) (net.Conn, error) { return net.Dial("unix", fmt.Sprintf("%s_%d", path, port)) }, l, nil
}
