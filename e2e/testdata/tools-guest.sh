#!/bin/busybox sh
# The first process of a guest that runs programs which many use to try
# machines: fio, iperf3 and stress-ng, from a disk of their own.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp /tools
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/shm
for m in $(cat /modules/order); do insmod /modules/$m; done
mount -o ro /dev/vdb /tools || echo "guest: no tools"
ip link set lo up
ip addr add 10.99.0.2/24 dev eth0
ip link set eth0 up
until ping -c 1 -W 1 -q 10.99.0.1 > /dev/null; do :; done

cd /tmp
# try runs a program, and says how it ended.
try() {
	name=$1; shift
	/tools/lib/ld-linux-x86-64.so.2 --library-path /tools/lib /tools/bin/$name "$@"
	echo "guest: $name ends with $?"
}
try fio --name=verify --filename=/dev/vda --size=24M --rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=16 \
	--direct=1 --verify=crc32c --verify_fatal=1 --eta=never --minimal --lockmem=0
try iperf3 -c 10.99.0.1 -t 4 -P 2
try iperf3 -c 10.99.0.1 -t 4 -P 2 -R
try stress-ng --cpu 1 --cpu-method fft --vm 1 --vm-bytes 32M --vm-method flip --pipe 1 --switch 1 --verify --timeout 8s --metrics-brief
poweroff -f
