package kernel

import (
	"encoding/binary"
	"testing"
)

func TestSignaturesAreTakenOff(t *testing.T) {
	tail := func(length uint32) string {
		return "\x00\x00\x02\x00\x00\x00\x00\x00" + string(binary.BigEndian.AppendUint32(nil, length)) + signatureMagic
	}
	for _, c := range []struct{ name, module, plain string }{
		{"signed", "content" + "sign" + tail(4), "content"},
		{"unsigned", "content", "content"},
		{"nothing", "", ""},
		{"too long", "content" + tail(8), "content" + tail(8)},
		{"endless", "content" + tail(0xffffffff), "content" + tail(0xffffffff)},
		{"only the magic", signatureMagic, signatureMagic},
		{"not at the end", "content" + tail(0) + "x", "content" + tail(0) + "x"},
	} {
		plain, signature := splitSignature([]byte(c.module))
		if string(plain) != c.plain || string(plain)+string(signature) != c.module {
			t.Errorf("%s: %q and %q", c.name, plain, signature)
		}
	}
}
