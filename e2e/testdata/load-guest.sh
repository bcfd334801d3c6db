#!/bin/busybox sh
# The first process of the guests of the monitor's stress tests.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in $(cat /modules/order); do
	insmod /modules/$m || echo "guest: no module $m"
done
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
	ip addr add 10.98.0.2/24 dev eth0
	ip link set eth0 up
fi
exec load
