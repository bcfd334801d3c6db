// Package seed makes the medium from which cloud-init in a guest learns who
// the guest is, and on which it finds our agent: data source NoCloud, an ISO
// 9660 image with the label cidata.
package seed

import (
	"io"
	"net"
	"net/netip"

	"github.com/cleave-project/cleave/api"
)

// Config is what a guest is to be told.
type Config struct {
	// InstanceID must stay the same as long as the guest is the same:
	// cloud-init takes another one for a fresh clone and sets up all anew.
	InstanceID string
	Hostname   string
	UserData   string   // as cloud-init takes it; may be empty
	SSHKeys    []string // public keys for the system's default user
	// NetworkConfig replaces what is made of NICs.
	NetworkConfig string
	NICs          []NIC
	Agent         string // path of the agent to install; empty for none
}

// NIC is a port as the guest sets it up.
type NIC struct {
	Name      string
	MAC       net.HardwareAddr
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	DNS       []netip.Addr
	Search    []string
	MTU       int
}

// Check tells what of a configuration can't be used.
func (c *Config) Check() error { return nil }

// Build writes the medium.
func Build(w io.Writer, c Config) error {
	return api.Errorf(api.CodeUnsupported, "no seed can be made")
}
