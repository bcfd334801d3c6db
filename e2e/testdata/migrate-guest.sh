#!/bin/busybox sh
# The first process of a guest that moves. Each number is noted in memory, and
# on the disk if there is one, before it is said over the connection.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in $(cat /modules/order); do insmod /modules/$m 2> /dev/null; done
ip addr add 10.99.0.2/24 dev eth0
ip link set eth0 up
echo "guest: up"
numbers() {
	i=0
	while :; do
		i=$((i + 1))
		[ "$(cat /tmp/last 2> /dev/null)" = "$((i - 1))" ] || [ $i = 1 ] || { echo "guest: memory has lost $i" > /dev/console; exit 1; }
		echo $i > /tmp/last
		if [ -b /dev/vda ]; then
			printf '%08d' $i | dd of=/dev/vda bs=512 seek=$i conv=notrunc,fsync 2> /dev/null || exit 1
		fi
		echo $i
	done
}
numbers | nc 10.99.0.1 7000
echo "guest: its connection has ended"
poweroff -f
