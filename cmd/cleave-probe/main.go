// Command cleave-probe is what `cleave verify` puts into a guest and executes
// there and on the host: it prints in JSON what it found (package probe).
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/cleave-project/cleave/verify/probe"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var code exitCode
		if errors.As(err, &code) {
			os.Exit(int(code))
		}
		fmt.Fprintln(os.Stderr, "cleave-probe:", err)
		os.Exit(1)
	}
}

type exitCode int

func (c exitCode) Error() string { return "exit status " + strconv.Itoa(int(c)) }

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("this program is for `cleave verify` to run")
	}
	arg := func(n int) string {
		if n < len(args) {
			return args[n]
		}
		return ""
	}
	number := func(n int) int {
		v, _ := strconv.Atoi(arg(n))
		return v
	}
	seconds := func(n int) time.Duration { return time.Duration(number(n)) * time.Second }
	switch args[0] {
	case "ask":
		return output(probe.Ask(arg(1)))
	case "measure":
		return output(probe.Measure(arg(1), time.Duration(number(2))*time.Millisecond))
	case "spin":
		return output(probe.Spin(seconds(1)), nil)
	case "eat":
		return output(probe.Eat(number(1)), nil)
	case "multiply":
		return output(probe.Multiply(number(1)), nil)
	case "fill":
		return output(probe.Fill(arg(1), number(2)), nil)
	case "send":
		return output(probe.Send(arg(1), seconds(2)), nil)
	case "reach":
		return output(probe.Reach(arg(1)), nil)
	case "see":
		return output(probe.See(arg(1)), nil)
	case "find":
		return output(probe.Find(arg(1)), nil)
	case "sink":
		return probe.Sink(arg(1))
	// What the others start as children of theirs:
	case "exit":
		return exitCode(number(1))
	case "sleep":
		time.Sleep(time.Hour)
		return nil
	case "eat-here":
		return probe.EatHere(number(1))
	case "orphan":
		return probe.Orphan()
	case "parent":
		return probe.Parent(number(1))
	}
	return fmt.Errorf("%q is not known: this program is for `cleave verify` to run", args[0])
}

func output(v any, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}
