// Package command is the command line of the lab: `lab up`, `lab exec` and so
// on, over package control.
package command
