#cloud-boothook
#!/bin/sh
# Installs the agent of Cleave, or renews it when the host has another one.
port=/dev/virtio-ports/org.cleave.agent
[ -e "$port" ] || exit 0
seed=$(mktemp -d) || exit 1
trap 'umount "$seed" 2>/dev/null; rmdir "$seed"' EXIT
for dev in /dev/disk/by-label/cidata /dev/disk/by-label/CIDATA $(blkid -t LABEL=cidata -o device 2>/dev/null) /dev/sr0; do
	[ -b "$dev" ] && mount -t iso9660 -o ro "$dev" "$seed" 2>/dev/null && [ -e "$seed/cleave-agent" ] && break
	umount "$seed" 2>/dev/null
done
[ -e "$seed/cleave-agent" ] || exit 0

# Some systems have a /usr that can't be written to.
for dir in /usr/local/sbin /opt/cleave /var/lib/cleave; do
	mkdir -p "$dir" 2>/dev/null && [ -w "$dir" ] && break
done
agent=$dir/cleave-agent
renewed=
if ! cmp -s "$seed/cleave-agent" "$agent"; then
	cp "$seed/cleave-agent" "$agent.new" && chmod 755 "$agent.new" && mv "$agent.new" "$agent" || exit 1
	restorecon "$agent" 2>/dev/null
	renewed=1
fi

if [ -d /run/systemd/system ]; then
	unit=/etc/systemd/system/cleave-agent.service
	cat >"$unit.new" <<END
[Unit]
Description=Agent of Cleave
ConditionPathExists=$port

[Service]
ExecStart=$agent serve-port $port
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
END
	if cmp -s "$unit.new" "$unit"; then
		rm "$unit.new"
	else
		mv "$unit.new" "$unit"
		systemctl daemon-reload
		systemctl enable --quiet cleave-agent.service
		renewed=1
	fi
	# Not waiting: the boot that would be waited for is waiting for us.
	systemctl --no-block ${renewed:+re}start cleave-agent.service
elif command -v rc-update >/dev/null; then
	cat >/etc/init.d/cleave-agent <<END
#!/sbin/openrc-run
description="Agent of Cleave"
supervisor=supervise-daemon
command=$agent
command_args="serve-port $port"
END
	chmod 755 /etc/init.d/cleave-agent
	rc-update -q add cleave-agent default
	rc-service cleave-agent start
elif ! pidof cleave-agent >/dev/null; then
	setsid "$agent" serve-port "$port" >/dev/null 2>&1 </dev/null &
fi
exit 0
