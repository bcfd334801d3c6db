package setup

import "github.com/cleave-project/cleave/engine/internal/nic"

// network brings the interfaces up.
func (b *builder) network() error {
	nics := make([]nic.NIC, len(b.spec.NICs))
	for i, n := range b.spec.NICs {
		nics[i] = nic.NIC(n)
	}
	return nic.Configure(nics, b.sysctl)
}
