// Package nft is Cleave's part of the host's packet filter: two tables of its
// own, "inet cleave" and "bridge cleave" (with the scope appended, so that
// several daemons live side by side), whose rules never change while the
// daemon runs. What changes are the elements of their sets and maps: a guest
// is some ten elements, added and removed in one transaction.
//
// The inet table translates addresses and keeps guests apart from the host
// and from other networks. The bridge table lets a port send only what bears
// its own addresses, and turns ARP and neighbour requests into unicast, so
// that nothing is flooded to a thousand ports. Both accept everything that
// isn't theirs: rules of others, Docker's or a firewall's, see the packets
// as before.
//
// A Tables may be used from any goroutine. No call waits for anything but
// the kernel.
package nft
