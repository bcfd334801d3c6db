package control

import (
	"regexp"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// The layers below know objects by their ids alone, and say so when they
// can't do something.

// identified finds what may be an id (store.NewID), or the name of a volume
// made of one, in a text.
var identified = regexp.MustCompile(`\b(?:([iv])-)?([a-z2-7]{10})(?:-[a-z0-9]+)?\b`)

// naming puts what users call an object in the place of its id in what a layer
// below says. Paths stay as they are: they lead somewhere.
func (c *Controller) naming(err error) error {
	if err == nil {
		return nil
	}
	e := *api.AsError(err)
	e.Message, e.Hint = c.named(e.Message), c.named(e.Hint)
	return &e
}

func (c *Controller) named(text string) string {
	var b strings.Builder
	from := 0
	for _, m := range identified.FindAllStringSubmatchIndex(text, -1) {
		begin, end := m[0], m[1]
		inPath := begin > 0 && strings.IndexByte("/.-", text[begin-1]) >= 0 || end < len(text) && text[end] == '/'
		kind := ""
		if m[2] >= 0 {
			kind = text[m[2]:m[3]]
		}
		if name := c.nameOf(kind, text[m[4]:m[5]]); name != "" && !inPath {
			b.WriteString(text[from:begin] + name)
			from = end
		}
	}
	return b.String() + text[from:]
}

// nameOf is the name of an object; of a root volume, whose it is.
func (c *Controller) nameOf(kind, id string) string {
	if in := c.instances.ByID(id); in != nil && kind != "v" {
		if kind == "i" {
			return "root of " + in.Name
		}
		return in.Name
	}
	if v := c.volumes.ByID(id); v != nil && kind != "i" {
		return v.Name
	}
	if n := c.networks.ByID(id); n != nil && kind == "" {
		return n.Name
	}
	return ""
}
