#!/bin/busybox sh
# The first process of the guests of monitor-host.sh. The kernel's command line
# says which of them it is.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in $(cat /modules/order); do
	case $m in # what these guests don't need costs seconds under emulation
	erofs.* | overlay.* | pvpanic* | virtio_mmio.* | virtio_console.* | virtio_balloon.*) continue ;;
	esac
	insmod /modules/$m || echo "guest: no module $m"
done
echo "guest: $(grep -c ^processor /proc/cpuinfo) CPUs, clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
mount -t ext4 /dev/vda /mnt || echo "guest: no disk"

if grep -q short /proc/cmdline; then
	if [ -e /mnt/again ]; then
		echo "guest: reset, and the disk has $(cat /mnt/again)"
		umount /mnt
		poweroff -f
	fi
	echo kept > /mnt/again
	umount /mnt
	reboot -f
fi

# The power button is a key.
(head -c 24 /dev/input/event0 > /dev/null; echo "guest: power button"; umount -l /mnt; poweroff -f) &
ip addr add 10.99.0.2/24 dev eth0
ip link set eth0 up
i=0
while :; do
	i=$((i + 1))
	echo $i >> /mnt/log || echo "guest: disk fails"
	net=no; ping -c 1 -W 2 -q 10.99.0.1 > /dev/null && net=yes
	hot=no; [ -e /sys/block/vdb ] && hot=$(head -c 5 /dev/vdb)
	# Whether the kernel knows of generations (CONFIG_VMGENID), and has drawn anew.
	fork=unknown; [ -n "$(ls -d /sys/bus/*/drivers/vmgenid 2> /dev/null)" ] && fork=$(dmesg | grep -c "due to virtual machine fork")
	echo "tick-$i net-$net hot-$hot fork-$fork random-$(cat /proc/sys/kernel/random/uuid)"
	sleep 1
done
