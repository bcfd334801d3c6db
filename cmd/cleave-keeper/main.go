// Command cleave-keeper is the parent of every guest process on a host; see
// package keeper. The daemon starts it; nobody else needs to.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/cleave-project/cleave/keeper"
)

func main() {
	socket := flag.String("socket", "/run/cleave/keeper.sock", "unix socket to listen on")
	flag.Parse()
	if err := keeper.Main(*socket); err != nil {
		fmt.Fprintln(os.Stderr, "cleave-keeper:", err)
		os.Exit(1)
	}
}
