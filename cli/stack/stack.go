package stack

import (
	"fmt"
	"slices"

	"github.com/cleave-project/cleave/api"
)

// Label marks what belongs to a stack; its value is the stack's name.
const Label = "cleave.stack"

// version is the version of the format.
const version = 1

// Stack is the content of a stack file, in its order.
type Stack struct {
	Name      string
	Networks  []api.Network
	Volumes   []api.Volume
	Instances []api.Instance
	// Depends names, by instance, those that must be ready before.
	Depends map[string][]string
}

// Levels orders the instances: each depends only on those in levels before
// its own.
func (s *Stack) Levels() ([][]api.Instance, error) {
	var levels [][]api.Instance
	placed := map[string]bool{}
	for rest := s.Instances; len(rest) > 0; {
		var level, later []api.Instance
		for _, in := range rest {
			ready := !slices.ContainsFunc(s.Depends[in.Name], func(d string) bool { return !placed[d] })
			if ready {
				level = append(level, in)
			} else {
				later = append(later, in)
			}
		}
		if len(level) == 0 {
			var names []string
			for _, in := range later {
				names = append(names, in.Name)
			}
			return nil, api.Errorf(api.CodeInvalid, "stack %q: these depend on each other in a circle, or on one that does: %v", s.Name, names)
		}
		for _, in := range level {
			placed[in.Name] = true
		}
		levels, rest = append(levels, level), later
	}
	return levels, nil
}

// HasDependents tells whether another instance waits for this one.
func (s *Stack) HasDependents(name string) bool {
	for _, d := range s.Depends {
		if slices.Contains(d, name) {
			return true
		}
	}
	return false
}

// lineError is a mistake in the file.
func lineError(file string, line int, format string, args ...any) error {
	return api.Errorf(api.CodeInvalid, "%s:%d: %w", file, line, fmt.Errorf(format, args...))
}
