package settings

var labels = &Setting{Key: "labels", Aliases: []string{"label"}, Flag: "label", Short: "l", Value: "NAME=VALUE", Path: "labels", parse: text, shape: table, Doc: "label to select it by"}

// Pool is the table of storage pools.
var Pool = Table{
	{Key: "driver", Flag: "driver", Value: "DRIVER", Path: "spec.driver", parse: text, Choices: []string{"btrfs", "dir"}, Doc: "how volumes are kept"},
	{Key: "source", Flag: "source", Value: "DIR", Path: "spec.source", parse: directory, Doc: "directory of the host (default: below the data directory)"},
	{Key: "size", Flag: "size", Value: "SIZE", Path: "spec.size", parse: size, Doc: "most that a loop file may grow to (default: as large as its disk allows)"},
	labels,
}

// Volume is the table of volumes.
var Volume = Table{
	{Key: "pool", Flag: "pool", Value: "POOL", Path: "spec.pool", Fixed: true, parse: text, Doc: "pool it lives in (default \"default\")"},
	{Key: "type", Flag: "type", Value: "TYPE", Path: "spec.type", Fixed: true, parse: text, Choices: []string{"tree", "disk"}, Doc: "files for containers, or a disk for machines (default tree)"},
	{Key: "size", Flag: "size", Value: "SIZE", Path: "spec.size", parse: size, Doc: "how much it may hold (default unlimited, 10GiB of a disk)"},
	labels,
}

// Network is the table of networks.
var Network = Table{
	{Key: "ipv4", Flag: "ipv4", Value: "SUBNET", Path: "spec.ipv4", Fixed: true, parse: text, Doc: "IPv4 subnet, or none (default: chosen)"},
	{Key: "ipv6", Flag: "ipv6", Value: "SUBNET", Path: "spec.ipv6", Fixed: true, parse: text, Doc: "IPv6 subnet, or none (default: chosen)"},
	{Key: "nat", Flag: "nat", Path: "spec.nat", parse: boolean, Doc: "hide the guests behind the host's address (default true)"},
	{Key: "domain", Flag: "domain", Value: "NAME", Path: "spec.domain", parse: text, Doc: "DNS domain of the guests' names (default \"cleave\")"},
	{Key: "mtu", Flag: "mtu", Value: "N", Path: "spec.mtu", parse: count, Doc: "largest packet (default 1500)"},
	labels,
}
