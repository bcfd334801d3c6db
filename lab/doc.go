// Package lab is a virtual datacenter: hosts with a stock distribution kernel
// and our own user space (package lab/appliance), each a virtual machine of
// QEMU with KVM inside, joined by a wire (package lab/wire) that can be cut,
// and with disks (package lab/disk) that can lose their power. It needs no
// privileges and no hardware: where KVM isn't usable, which is measured, QEMU
// emulates a processor with SVM.
//
// A Lab belongs to one process, and ends with it, however that ends. Package
// lab/control keeps one in the background. A Lab's and a Host's methods may be
// called from any goroutine; those that take a context wait for the host, all
// others don't.
//
// A host is managed by Cleave's own agent over a virtio port. One that hangs
// is found from outside: as long as it boots it has work to do, so one that
// uses no processor for half a minute and says nothing is hung. (Of emulated
// hosts with SVM one in twelve is.) It is started once more; if it hangs
// again, that is an error with the end of its console.
//
// Tests declare what they need, and run their halves from one source file:
//
//	func TestGuestBoots(t *testing.T) {
//		h := lab.Hosts(t, 1, lab.KVM)[0]
//		lab.Run(t, h, TestGuestBootsInside)
//	}
//
//	func TestGuestBootsInside(t *testing.T) {
//		lab.Inside(t) // skips, unless it runs in a host
//		...
//	}
package lab
