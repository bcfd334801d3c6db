package settings

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
)

// parser turns a text into what is put in the patch. Lists give []any.
type parser func(p *Patch, text string) (any, error)

func text(_ *Patch, s string) (any, error) { return s, nil }

func boolean(_ *Patch, s string) (any, error) {
	switch strings.ToLower(s) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0":
		return false, nil
	}
	return nil, api.Errorf(api.CodeInvalid, "%q is neither true nor false", s)
}

func size(_ *Patch, s string) (any, error) {
	b, err := api.ParseBytes(s)
	return int64(b), err
}

// rate is a size per second, with or without the words.
func rate(p *Patch, s string) (any, error) {
	return size(p, strings.TrimSuffix(strings.TrimSuffix(s, "/s"), "ps"))
}

func count(_ *Patch, s string) (any, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return nil, api.Errorf(api.CodeInvalid, "%q is not a whole number from 0 up", s)
	}
	return n, nil
}

func fraction(_ *Patch, s string) (any, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, api.Errorf(api.CodeInvalid, "%q is not a number from 0 up", s)
	}
	return f, nil
}

func seconds(_ *Patch, s string) (any, error) {
	d, err := ParseDuration(s)
	if err != nil {
		return nil, err
	}
	return int64((d + time.Second - 1) / time.Second), nil
}

// ParseDuration reads a time span: 90 (seconds), 1m30s, 36h, 7d, 2w.
func ParseDuration(s string) (time.Duration, error) {
	bad := api.Errorf(api.CodeInvalid, "%q is not a time span", s).WithHint("write it like 10s, 1m30s, 12h or 7d")
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		s = strconv.FormatFloat(f, 'f', -1, 64) + "s"
	}
	for unit, long := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if num, ok := strings.CutSuffix(s, unit); ok {
			f, err := strconv.ParseFloat(num, 64)
			if err != nil || f < 0 || f*float64(long) > math.MaxInt64 {
				return 0, bad
			}
			return time.Duration(f * float64(long)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, bad
	}
	return d, nil
}

// words splits a command line as a shell does with quotes and backslashes
// (POSIX XCU §2.2), without expansions; a JSON array is taken as it is.
func words(_ *Patch, s string) (any, error) {
	w, err := Words(s)
	return anys(w), err
}

// Words splits a command line.
func Words(s string) ([]string, error) {
	if strings.HasPrefix(strings.TrimSpace(s), "[") {
		var w []string
		if err := json.Unmarshal([]byte(s), &w); err != nil {
			return nil, api.Errorf(api.CodeInvalid, "%q is not a JSON array of strings", s)
		}
		return w, nil
	}
	var (
		out   []string
		word  strings.Builder
		quote rune // ' or ", or 0
		in    bool // a word has begun
		esc   bool
	)
	for _, r := range s {
		switch {
		case esc:
			// Between double quotes a backslash quotes only these (§2.2.3).
			if quote == '"' && !strings.ContainsRune("$`\"\\\n", r) {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			esc = false
		case r == '\\' && quote != '\'':
			esc, in = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				out = append(out, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 || esc {
		return nil, api.Errorf(api.CodeInvalid, "%q ends inside a quotation", s)
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

// shellCommand runs the text by the guest's shell; a JSON array is run as it
// is, and nothing at all turns a health check off.
func shellCommand(_ *Patch, s string) (any, error) {
	switch {
	case s == "":
		return []any{}, nil
	case strings.HasPrefix(strings.TrimSpace(s), "["):
		w, err := Words(s)
		return anys(w), err
	}
	return []any{"sh", "-c", s}, nil
}

func capability(_ *Patch, s string) (any, error) {
	c := strings.TrimPrefix(strings.ToUpper(s), "CAP_")
	if c == "" || strings.Trim(c, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return nil, api.Errorf(api.CodeInvalid, "%q is not the name of a capability", s).WithHint("write it like NET_RAW")
	}
	return []any{c}, nil
}

func ulimit(_ *Patch, s string) (any, error) {
	soft, hard, both := strings.Cut(s, ":")
	if !both {
		hard = soft
	}
	values := map[string]any{}
	for name, t := range map[string]string{"soft": soft, "hard": hard} {
		n, err := strconv.ParseInt(t, 10, 64)
		switch {
		case t == "unlimited":
			n = -1
		case err != nil || n < -1:
			return nil, api.Errorf(api.CodeInvalid, "%q is not a limit", s).WithHint("write SOFT or SOFT:HARD, with numbers or 'unlimited'")
		}
		values[name] = n
	}
	return values, nil
}

func anys(w []string) []any {
	out := make([]any, len(w))
	for i, s := range w {
		out[i] = s
	}
	return out
}
