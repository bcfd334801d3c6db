// Package store keeps resources durably in an etcd that runs inside the
// daemon, as typed collections with compare-and-swap and watches.
package store
