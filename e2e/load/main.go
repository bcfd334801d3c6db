// Command load is what guests of the monitor's stress tests do: it keeps
// changing memory of which it knows each page, and does what lines of its
// standard input say, each of which it answers with a line "load: ...".
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

func main() {
	m := newMemory(4096)
	go m.change()
	fmt.Println("load: ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		answer, err := do(m, words[0], words[1:])
		if err != nil {
			answer = "failed: " + err.Error()
		}
		fmt.Printf("load: %s %s\n", words[0], answer)
	}
}

func do(m *pages, what string, args []string) (string, error) {
	switch {
	case what == "check":
		return m.check(), nil
	case what == "devices":
		return devices()
	case what == "who":
		return who()
	case what == "become" && len(args) == 3:
		return become(args[0], args[1], args[2])
	case what == "see" && len(args) == 2:
		return see(args[0], args[1])
	case what == "numbers" && len(args) == 2:
		return "begin", numbers(args[0], args[1])
	case what == "stream" && len(args) == 2:
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return "", err
		}
		return stream(args[0], n)
	case what == "disk" && len(args) == 1:
		return verifiedDisk(args[0])
	}
	return "", fmt.Errorf("what is %q with %d arguments?", what, len(args))
}
