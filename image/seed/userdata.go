package seed

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"fmt"
	"mime/multipart"
	"net/textproto"
	"regexp"
	"strings"
)

// agentName is the agent's file on the medium.
const agentName = "cleave-agent"

// boothook installs the agent. It runs early at every boot, before anything
// of the user's.
//
//go:embed boothook.sh
var boothook string

// mimeHeader begins user data that are a MIME message already.
var mimeHeader = regexp.MustCompile(`(?i)^(content-type|mime-version):`)

// userData is the user's own, beside our part if the agent is to come in. A
// part of type text/plain is looked at by cloud-init as user data alone would
// be.
func (c *Config) userData() (string, error) {
	if c.Agent == "" {
		return c.UserData, nil
	}
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	if err := m.SetBoundary("==cleave-" + c.InstanceID[:min(len(c.InstanceID), 40)] + "=="); err != nil {
		return "", fmt.Errorf("cloud-init seed: %w", err)
	}
	fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=%q\nMIME-Version: 1.0\n\n", m.Boundary())
	part := func(kind, name, text string) error {
		w, err := m.CreatePart(textproto.MIMEHeader{
			"Content-Type":              {kind},
			"Mime-Version":              {"1.0"},
			"Content-Transfer-Encoding": {"base64"},
			"Content-Disposition":       {`attachment; filename="` + name + `"`},
		})
		if err == nil {
			_, err = w.Write(lines(text))
		}
		return err
	}
	err := part("text/cloud-boothook", "cleave-agent.sh", boothook)
	switch {
	case err != nil:
	case mimeHeader.MatchString(c.UserData):
		// A message in a message, which can't be encoded (RFC 2046 §5.2.1).
		var w interface{ Write([]byte) (int, error) }
		if w, err = m.CreatePart(textproto.MIMEHeader{"Content-Type": {"message/rfc822"}}); err == nil {
			_, err = w.Write([]byte(c.UserData))
		}
	case c.UserData != "":
		err = part(`text/plain; charset="utf-8"`, "user-data", c.UserData)
	}
	if err == nil {
		err = m.Close()
	}
	if err != nil {
		return "", fmt.Errorf("cloud-init seed: %w", err)
	}
	return b.String(), nil
}

// lines is text in base64, in lines of 76 characters (RFC 2045 §6.8).
func lines(text string) []byte {
	s := base64.StdEncoding.EncodeToString([]byte(text))
	var b strings.Builder
	for len(s) > 76 {
		b.WriteString(s[:76] + "\n")
		s = s[76:]
	}
	b.WriteString(s + "\n")
	return []byte(b.String())
}
