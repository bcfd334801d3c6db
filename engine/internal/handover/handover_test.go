package handover

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestWaitTellsHowItWent(t *testing.T) {
	started, failed := `{"started":true}`, `{"error":{"code":"not-found","detail":"no such program"}}`
	for _, c := range []struct {
		answer string
		system bool
		want   string
	}{
		{started, false, ""},
		{started, true, ""},
		{started + failed, true, "no such program"},
		{failed, false, "no such program"},
		{failed, true, "no such program"},
		{"", false, "EOF"},
		{"", true, "EOF"},
		{"garbage", false, "invalid character"},
		{started + "garbage", true, "invalid character"},
	} {
		err := Wait(strings.NewReader(c.answer), c.system)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, system %t: error %v, want %q", c.answer, c.system, err, c.want)
		}
		if strings.Contains(c.want, "program") && !api.IsCode(err, api.CodeNotFound) {
			t.Errorf("error %v has lost its code", err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	var b bytes.Buffer
	if err := send(&b, map[string]string{"a": "b"}, 2); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(binary.NativeEndian.AppendUint64(nil, 1<<40|5))
	f.Fuzz(func(t *testing.T, in []byte) {
		var v any
		if n, err := Decode(bytes.NewReader(in), &v); err == nil && (n > maxFiles || len(in) < 8) {
			t.Errorf("%d files with %d bytes", n, len(in))
		}
	})
}

func FuzzWait(f *testing.F) {
	f.Add([]byte(`{"started":true}`), true)
	f.Add([]byte(`{"error":{"code":"x"}}`), false)
	f.Fuzz(func(t *testing.T, in []byte, system bool) { Wait(bytes.NewReader(in), system) })
}
