// Command peer is what a test's guest talks to its host with, by vsock:
// "peer dial PORT" says hello to a port of the host and prints the answer,
// "peer listen PORT" gives everybody back what they say.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Println("peer:", err)
		os.Exit(1)
	}
}

func run(what, port string) error {
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if what == "listen" {
		return listen(s, uint32(n))
	}
	if err := unix.Connect(s, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: uint32(n)}); err != nil {
		return fmt.Errorf("connect to port %d of the host: %w", n, err)
	}
	f := os.NewFile(uintptr(s), "host")
	defer f.Close()
	if _, err := f.WriteString("hello from the guest"); err != nil {
		return err
	}
	if err := unix.Shutdown(s, unix.SHUT_WR); err != nil {
		return err
	}
	answer, err := io.ReadAll(f)
	fmt.Printf("guest: the host says %q\n", answer)
	return err
}

func listen(s int, port uint32) error {
	if err := unix.Bind(s, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return err
	}
	if err := unix.Listen(s, 4); err != nil {
		return err
	}
	fmt.Println("guest: listens")
	for {
		c, _, err := unix.Accept(s)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(c), "host")
		_, err = io.Copy(f, f)
		f.Close()
		if err != nil {
			return err
		}
	}
}
