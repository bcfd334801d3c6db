#!/bin/busybox sh
# The first process: loads the disk's driver and goes on from the disk.
/bin/busybox mount -t devtmpfs dev /dev
for m in MODULES; do
	/bin/busybox insmod "$m" || echo "stockhost: insmod $m failed"
done
/bin/busybox mount -t ext4 /dev/vda /root || { echo "stockhost: no root disk"; exec /bin/busybox poweroff -f; }
exec /bin/busybox switch_root /root /init
