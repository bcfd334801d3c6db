package settings

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Write is a value of the setting, as JSON has it, in the form of a stack
// file, which reads it as the same value again.
func (s *Setting) Write(v any) any {
	n, isNumber := v.(float64)
	switch {
	case isNumber && s.Value == "TIME":
		return fmt.Sprintf("%.0fs", n)
	case isNumber && s.Value == "SIZE":
		return api.Bytes(n).Exact()
	case isNumber && s.Value == "SIZE/s":
		return api.Bytes(n).Exact() + "/s"
	}
	switch s.Path {
	case "spec.mounts":
		return texts(v, mountText)
	case "spec.publish":
		return texts(v, publishText)
	case "spec.nics":
		if l, ok := v.([]any); ok && len(l) == 0 {
			return "none"
		}
		return texts(v, nicText)
	case "spec.ulimits":
		return limitTexts(v)
	}
	return v
}

// texts writes each object of a list.
func texts[T any](v any, text func(T) string) any {
	var list []T
	if err := convert(v, &list); err != nil {
		return v
	}
	out := []any{}
	for _, item := range list {
		out = append(out, text(item))
	}
	return out
}

func convert(v, to any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, to)
}

func mountText(m api.Mount) string {
	text := m.Volume + m.HostPath + ":" + m.Target
	if m.ReadOnly {
		text += ":ro"
	}
	return text
}

func nicText(n api.NIC) string {
	text := n.Network
	if text == "" {
		text = "default"
	}
	var options []string
	for _, o := range [][2]string{{"ip", n.IPv4}, {"ip6", n.IPv6}, {"mac", n.MAC}, {"name", n.Name}} {
		if o[1] != "" {
			options = append(options, o[0]+"="+o[1])
		}
	}
	if options != nil {
		text += ":" + strings.Join(options, ",")
	}
	return text
}

func publishText(p api.Publish) string {
	text := fmt.Sprintf("%d:%d", p.HostPort, p.GuestPort)
	if p.HostIP != "" {
		text = net.JoinHostPort(p.HostIP, strconv.Itoa(p.HostPort)) + ":" + strconv.Itoa(p.GuestPort)
	}
	if p.Protocol != "" {
		text += "/" + p.Protocol
	}
	return text
}

func limitTexts(v any) any {
	var limits map[string]api.Ulimit
	if err := convert(v, &limits); err != nil {
		return v
	}
	out := map[string]any{}
	for name, l := range limits {
		out[name] = limitText(l.Soft) + ":" + limitText(l.Hard)
	}
	return out
}

func limitText(n int64) string {
	if n == -1 {
		return "unlimited"
	}
	return strconv.FormatInt(n, 10)
}
