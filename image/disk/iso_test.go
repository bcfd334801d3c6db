package disk

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/iso9660"
)

func TestMediumIsISOOrUDF(t *testing.T) {
	var iso bytes.Buffer
	if err := iso9660.Write(&iso, "test", []iso9660.File{{Name: "file", Size: 1, Data: strings.NewReader("x")}}); err != nil {
		t.Fatal(err)
	}
	sequence := func(ids ...string) []byte {
		b := make([]byte, isoFirst+32*isoSector)
		for i, id := range ids {
			copy(b[isoFirst+i*isoSector:], "\x00"+id+"\x01")
		}
		return b
	}
	raw := make([]byte, 1<<20)
	raw[510], raw[511] = 0x55, 0xaa
	for name, tt := range map[string]struct {
		data []byte
		says string
	}{
		"ISO 9660":      {iso.Bytes(), ""},
		"UDF":           {sequence("BEA01", "NSR02", "TEA01"), ""},
		"UDF, long":     {sequence("BEA01", "BOOT2", "NSR03", "TEA01"), ""},
		"nothing":       {nil, "neither ISO 9660 nor UDF"},
		"text":          {bytes.Repeat([]byte("text "), 1e5), "neither ISO 9660 nor UDF"},
		"only a start":  {sequence("BEA01", "TEA01"), "neither ISO 9660 nor UDF"},
		"a disk":        {raw, "but raw"},
		"a cut off ISO": {iso.Bytes()[:iso.Len()-isoSector], "cut off"},
	} {
		firmware, err := Medium(t.Context(), bytes.NewReader(tt.data), int64(len(tt.data)))
		if firmware != "" || (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %q, %v", name, firmware, err)
		}
		if api.IsCode(err, api.CodeInvalid) && api.AsError(err).Hint == "" {
			t.Errorf("%s: no hint", name)
		}
	}
}
