// Command lab is a virtual datacenter on this machine (package lab):
//
//	go run ./cmd/lab up --hosts 3
//
// It is a tool of those who build and test Cleave, and isn't installed.
package main

import (
	"os"

	"github.com/cleave-project/cleave/lab/command"
)

func main() {
	os.Exit(command.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
