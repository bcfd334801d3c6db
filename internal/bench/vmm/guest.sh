#!/bin/busybox sh
# The first process of the guests that are measured: what it says is timed by
# the host. The kernel's command line says what it does.
/bin/busybox echo "guest: init"
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
grep -q boot-only /proc/cmdline && poweroff -f
if grep -q ticks /proc/cmdline; then
	while :; do echo "guest: tick"; usleep 10000; done
fi
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in $(cat /modules/order); do insmod /modules/$m; done
ip addr add 10.99.0.2/24 dev eth0
ip link set eth0 up
until ping -c 1 -W 1 -q 10.99.0.1 > /dev/null; do :; done
phase() { echo "guest: begin $1"; shift; "$@" 2> /dev/null; echo "guest: end"; }
send() { dd if=/dev/zero bs=256k count=256 | nc 10.99.0.1 5000; }
receive() { nc 10.99.0.1 5001 > /dev/null; }
echo "guest: idle"
sleep 2
phase blk-read dd if=/dev/vda of=/dev/null bs=1M count=128 iflag=direct
phase blk-write dd if=/dev/zero of=/dev/vda bs=1M count=128 oflag=direct
phase blk-read-4k dd if=/dev/vda of=/dev/null bs=4k count=2048 iflag=direct
phase net-send send
phase net-receive receive
poweroff -f
