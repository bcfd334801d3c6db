// Command cleave is the command line of Cleave: it talks to cleaved and does
// nothing else. See package cli.
package main

import (
	"context"
	"os"

	"github.com/cleave-project/cleave/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
