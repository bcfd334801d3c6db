package nft

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

var (
	address4 = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	address6 = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIP6Addr)
	self4    = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	self6    = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIP6Addr)
	pair     = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)

	anyPort  = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	onePort4 = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	onePort6 = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	target4  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	target6  = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
)

// sets are the sets and maps of both tables.
type sets struct {
	// inet
	bridges *nftables.Set // the bridges of all networks
	pairs   *nftables.Set // bridge . bridge: inside one network
	nat     *nftables.Set // bridges whose traffic leaves under the host's address
	routed  *nftables.Set // the others, which may be reached from outside
	self4   *nftables.Set // guest . guest: to itself
	self6   *nftables.Set
	any4    *nftables.Set // published on every address
	any6    *nftables.Set
	one4    *nftables.Set // published on one
	one6    *nftables.Set
	asked4  *nftables.Set // meters of DNS queries by source
	asked6  *nftables.Set

	// bridge
	addresses4 *nftables.Set // port . MAC . address that may send
	addresses6 *nftables.Set
	macs4      *nftables.Set // address to MAC, of guests and gateways
	macs6      *nftables.Set
	shouts     *nftables.Set // meter of broadcasts by port
}

func newSets(inet, bridge *nftables.Table) *sets {
	id := uint32(0)
	add := func(s nftables.Set) *nftables.Set {
		id++ // unique in a transaction; the library's own counter isn't safe for two of us
		s.ID = id
		s.IsMap = s.DataType.Bytes > 0
		if s.KeyType.Name == nftables.TypeIFName.Name {
			s.KeyByteOrder = binaryutil.NativeEndian // else nft(8) can't print them
		}
		return &s
	}
	meter := func(t *nftables.Table, name string, key nftables.SetDatatype) *nftables.Set {
		return add(nftables.Set{
			Table: t, Name: name, KeyType: key,
			Dynamic: true, HasTimeout: true, Timeout: 10 * time.Second, Size: 1 << 16,
		})
	}
	return &sets{
		bridges: add(nftables.Set{Table: inet, Name: "bridges", KeyType: nftables.TypeIFName}),
		pairs:   add(nftables.Set{Table: inet, Name: "pairs", KeyType: pair}),
		nat:     add(nftables.Set{Table: inet, Name: "nat", KeyType: nftables.TypeIFName}),
		routed:  add(nftables.Set{Table: inet, Name: "routed", KeyType: nftables.TypeIFName}),
		self4:   add(nftables.Set{Table: inet, Name: "self4", KeyType: self4}),
		self6:   add(nftables.Set{Table: inet, Name: "self6", KeyType: self6}),
		any4:    add(nftables.Set{Table: inet, Name: "any4", KeyType: anyPort, DataType: target4}),
		any6:    add(nftables.Set{Table: inet, Name: "any6", KeyType: anyPort, DataType: target6}),
		one4:    add(nftables.Set{Table: inet, Name: "one4", KeyType: onePort4, DataType: target4}),
		one6:    add(nftables.Set{Table: inet, Name: "one6", KeyType: onePort6, DataType: target6}),
		asked4:  meter(inet, "asked4", nftables.TypeIPAddr),
		asked6:  meter(inet, "asked6", nftables.TypeIP6Addr),

		addresses4: add(nftables.Set{Table: bridge, Name: "addresses4", KeyType: address4}),
		addresses6: add(nftables.Set{Table: bridge, Name: "addresses6", KeyType: address6}),
		macs4:      add(nftables.Set{Table: bridge, Name: "macs4", KeyType: nftables.TypeIPAddr, DataType: nftables.TypeEtherAddr}),
		macs6:      add(nftables.Set{Table: bridge, Name: "macs6", KeyType: nftables.TypeIP6Addr, DataType: nftables.TypeEtherAddr}),
		shouts:     meter(bridge, "shouts", nftables.TypeIFName),
	}
}

// filled are the sets whose elements we write; the kernel writes the meters.
func (s *sets) filled() []*nftables.Set {
	return []*nftables.Set{
		s.bridges, s.pairs, s.nat, s.routed, s.self4, s.self6, s.any4, s.any6, s.one4, s.one6,
		s.addresses4, s.addresses6, s.macs4, s.macs6,
	}
}

func (s *sets) meters() []*nftables.Set {
	return []*nftables.Set{s.asked4, s.asked6, s.shouts}
}
