// Package network makes virtual switches with subnets, DNS, port forwards
// and policy out of the kernel's bridges, veth pairs and nftables, in tables
// and links of its own, beside whatever else manages the host's network.
//
// Desired state is handed over whole and compared with what the kernel has;
// only the difference is written. Guests keep their network while the daemon
// is down, except for DNS.
package network
