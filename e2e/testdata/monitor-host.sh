# What the stock host does with the monitor. Each thing that went well is a
# line "host: ...", of which the test has the list.
modprobe kvm_amd; cd /vmm
kernel="--kernel kernel --initrd initrd --memory 256MiB"
line="console=ttyS0 quiet panic=-1"

# wait_for has a file show a pattern.
wait_for() {
	n=0
	until grep -q "$1" $2; do
		n=$((n + 1))
		[ $n -gt 240 ] && { echo "host: no $1 in $2:"; tail -20 $2; return 1; }
		sleep 1
	done
}
port() { ip addr add 10.99.0.1/24 dev $1; ip link set $1 up; }

timeout -s KILL 400 ./cleave-vmm $kernel --disk disk --command "$line short" < /dev/null > short || echo "host: status $?"
cat short
grep -q "reset, and the disk has kept" short && echo "host: reset and power-off"

./cleave-vmm $kernel --disk disk --net tap0 --cpus 2 --control s --command "$line" < /dev/null > out 2>&1 &
first=$!
c="./cleave-vmm control s"
wait_for tick-1 out; port tap0
wait_for net-yes out && echo "host: network"
for p in $(pidof cleave-vmm); do
	grep -q "^Seccomp:	2" /proc/$p/status || continue
	grep -qE "^CapEff:	0+$" /proc/$p/status && [ "$(ls /proc/$p/root | wc -l)" = 0 ] && ! grep -q "^Uid:	0" /proc/$p/status && echo "host: jail"
	grep -E "^(VmRSS|RssAnon|RssFile|RssShmem|Threads)" /proc/$p/status
done

echo plugd > hot; truncate -s 8M hot
$c add-disk hot,name=hot; wait_for hot-plugd out && echo "host: disk plugged in"
$c remove hot && ! $c status | grep -q '"hot"' && echo "host: disk let go of"

$c save snap --track && echo "host: snapshot of a running guest"
ls -ls snap
sleep 2
$c pause && $c status | grep -q paused && $c save changes --changes && cp disk disk3 && echo "host: snapshot of changes"
ls -ls changes
$c resume
# Disks as they are now are newer than the first snapshot: its clones don't care
# while they only append.
cp disk disk2
last=$(grep -c tick- out); wait_for "tick-$((last + 1))" out && echo "host: goes on"
$c power-button; wait $first && grep -q "guest: power button" out && echo "host: power button"
cat out

clone() { # name, disk, layers
	name=$1; disk=$2; shift 2
	./cleave-vmm $(for s in $*; do echo --restore $s; done) --disk $disk --net $name --control $name.s < /dev/null > $name 2>&1 &
	until [ -e /sys/class/net/$name ]; do sleep 0.1; done; port $name
	wait_for net-yes $name && wait_for tick- $name && echo "host: clone $name"
	./cleave-vmm control $name.s stop; wait $!
	ip link set $name down 2> /dev/null
	cat $name
}
clone one disk2 snap
clone two disk2 snap
clone three disk3 snap changes
[ "$(grep -m 1 -o random.* one)" != "$(grep -m 1 -o random.* two)" ] && echo "host: clones have random numbers of their own"
true
