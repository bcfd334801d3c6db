package cli

import (
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/spf13/cobra"
)

// format is how the user wants a result printed.
type format struct {
	name    string
	columns string
	allowed []string
}

// listFormat adds the flags of a listing.
func listFormat(cmd *cobra.Command, columns []string) *format {
	f := &format{allowed: output.Formats}
	fs := cmd.Flags()
	fs.StringVarP(&f.name, "output", "o", string(output.Table), "format: "+strings.Join(f.allowed, ", "))
	named(fs, "output", "FORMAT")
	fs.StringVar(&f.columns, "columns", "", "columns of the table, from "+strings.Join(columns, ", "))
	named(fs, "columns", "LIST")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(f.allowed, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("columns", cobra.FixedCompletions(columns, cobra.ShellCompDirectiveNoFileComp))
	return f
}

// showFormat adds the flag of a description.
func showFormat(cmd *cobra.Command) *format {
	f := &format{allowed: []string{string(output.Table), string(output.YAML), string(output.JSON)}}
	fs := cmd.Flags()
	fs.StringVarP(&f.name, "output", "o", string(output.Table), "format: "+strings.Join(f.allowed, ", "))
	named(fs, "output", "FORMAT")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(f.allowed, cobra.ShellCompDirectiveNoFileComp))
	return f
}

func (f *format) check() error {
	if !slices.Contains(f.allowed, f.name) {
		return usagef("there is no format %q; choose from %s", f.name, strings.Join(f.allowed, ", "))
	}
	return nil
}

// checkList checks the flags of a listing and selects its columns.
func checkList[T any](f *format, l output.Listing[T]) (output.Listing[T], error) {
	if err := f.check(); err != nil {
		return l, err
	}
	selected, err := l.Select(f.columns)
	if err != nil {
		return l, usageError{err}
	}
	return selected, nil
}

// printList prints a listing.
func printList[T any](a *app, f *format, l output.Listing[T], items []T) error {
	return output.List(a.out, output.Format(f.name), l, items)
}

// printOne prints one object: for people by describe.
func printOne(a *app, f *format, v any, describe func(*output.Sections)) error {
	switch output.Format(f.name) {
	case output.JSON:
		return a.out.JSON(v)
	case output.YAML:
		return a.out.YAML(v)
	}
	s := output.NewSections(a.out)
	describe(s)
	return s.Print()
}

// familiar shortens an image's reference to what a user would type.
func familiar(ref string) string {
	ref = strings.TrimPrefix(strings.TrimPrefix(ref, "docker.io/library/"), "docker.io/")
	if s, ok := strings.CutSuffix(ref, ":latest"); ok && !strings.Contains(s, "@") {
		return s
	}
	return ref
}

// shortDigest is enough of a digest to tell images apart.
func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok {
		return d
	}
	return hex[:min(12, len(hex))]
}

// sizeText prints a size, and nothing for none.
func sizeText(b api.Bytes) string {
	if b == 0 {
		return ""
	}
	return b.String()
}
