#!/bin/busybox sh
# The first process of the guests of TestMonitorsDevicesInAGuest. The kernel's
# command line says which of them it is.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# So that what is plugged can be taken again.
echo online_movable > /sys/devices/system/memory/auto_online_blocks
for m in $(cat /modules/order); do
	case $m in # what these guests don't need costs seconds under emulation
	erofs.* | overlay.* | pvpanic* | virtio_mmio.* | virtio_console.* | virtio_balloon.* | virtio_net.* | *failover.*) continue ;;
	esac
	insmod /modules/$m || echo "guest: no module $m"
done
work=0
for i in $(seq 0 $(($(nproc) - 1))); do
	taskset $(printf %x $((1 << i))) true && work=$((work + 1))
done
echo "guest: $(nproc) CPUs, $work work"
if ! grep -q devices /proc/cmdline; then
	echo "guest: image has $(head -c 7 /dev/vda)"
	poweroff -f
fi

printf written | dd of=/dev/vda bs=512 conv=sync,fsync 2> /dev/null
dd if=/dev/zero bs=1M count=8 2> /dev/null | tr '\0' x | dd of=/dev/vda bs=1M seek=32 conv=fsync 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
echo "guest: image has $(head -c 7 /dev/vda) $(dd if=/dev/vda bs=1M skip=32 count=8 2> /dev/null | md5sum | head -c 32)"
echo "guest: pmem $(md5sum < /dev/pmem0 | head -c 32)"
dd if=/dev/zero of=/dev/pmem0 bs=4k count=1 oflag=direct 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
echo "guest: pmem still $(md5sum < /dev/pmem0 | head -c 32)"
/bin/peer dial 9
/bin/peer dial 1024
/bin/peer listen 52 &
while :; do
	echo "guest: memory $(awk '/MemTotal/ {print $2}' /proc/meminfo)"
	sleep 1
done
