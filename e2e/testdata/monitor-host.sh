# What a host does with the monitor. Each thing that went well is a
# line "host: ...", of which the test has the list.
exec 2>&1
mkdir /var/vmm && cd /var/vmm && cp /lab/disk . || exit 1
monitor=/lab/cleave-vmm
kernel="--kernel /lab/kernel --initrd /lab/initrd --memory 256MiB"
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
# Guests know the host by one address, whichever the tap.
port() { ip link set $1 address 02:00:00:00:99:01; ip addr add 10.99.0.1/24 dev $1; ip link set $1 up; }

timeout -s KILL 400 $monitor $kernel --disk disk --command "$line short" < /dev/null > short || echo "host: status $?"
cat short
grep -q "reset, and the disk has kept" short && echo "host: reset and power-off"

$monitor $kernel --disk disk,changes=kept --net tap0 --cpus 2 --control s --command "$line" < /dev/null > out 2>&1 &
first=$!
c="$monitor control s"
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
$c pause && $c status | grep -q paused && $c save changes --changes && cp disk one.disk && cp disk two.disk && cp disk three.disk && echo "host: snapshot of changes"
ls -ls changes
$c resume
last=$(grep -c tick- out); wait_for "tick-$((last + 1))" out && echo "host: goes on"
mark=$($c mark-disk disk0)
last=$(grep -c tick- out); wait_for "tick-$((last + 2))" out
$c power-button; wait $first && grep -q "guest: power button" out && echo "host: power button"
cat out

# The disk's next guest has the marks of the one before; none has those of one
# that was killed.
follow() {
	rm -f f
	$monitor $kernel --disk disk,changes=kept --control f --command "$line short" < /dev/null > again 2>&1 &
	until [ -S f ]; do sleep 0.1; done
	$monitor control f changed disk0 $mark > changed 2> lost
	cat changed lost
}
follow; [ -s changed ] && ! [ -s lost ] && echo "host: changes are known after a restart"
kill -KILL $!; wait $!
follow; grep -q "didn't end in order" lost && echo "host: changes aren't known after a kill"
$monitor control f stop; wait $!

# drawn are the random numbers of a clone that knows that it is one. A kernel
# without the driver of generations can't know it.
drawn() { grep -E "tick-.* fork-([1-9]|unknown)" $1 | grep -o "random-[0-9a-f-]*"; }

clone() {
	name=$1; shift
	$monitor "$@" --disk $name.disk --net $name --control $name.s < /dev/null > $name 2>&1 &
	until [ -e /sys/class/net/$name ]; do sleep 0.1; done; port $name
	wait_for net-yes $name && echo "host: clone $name"
	until [ -n "$(drawn $name)" ]; do sleep 1; done
	$monitor control $name.s stop; wait $!
	ip link set $name down 2> /dev/null
	cat $name
}
clone one --restore snap --restore changes
clone two --restore snap --restore changes
# The last one has nothing but the state, and its memory comes from somebody else.
mkdir state && cp changes/state.json state
$monitor pages p snap changes &
pages=$!
until [ -S p ]; do sleep 0.1; done
clone three --restore state --pages p
kill $pages; wait $pages && [ ! -e p ] && echo "host: memory was brought"
if grep -q "fork-unknown" one; then
	echo "host: a kernel that doesn't know of clones"
elif [ -z "$(cat one two | grep -E "tick-.* fork-[1-9]" | grep -o "random-[0-9a-f-]*" | sort | uniq -d)" ]; then
	echo "host: clones have random numbers of their own"
fi
true
