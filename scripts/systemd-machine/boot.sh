#!/bin/sh
# PID 1 of the systemd machine until systemd takes over: what the engine sets up
# for a privileged container, and a boot id of its own for each boot.
set -eu

mount --options remount,bind,rw /sys/fs/cgroup
for hierarchy in /sys/fs/cgroup/*/; do
    if mountpoint --quiet "$hierarchy"; then # cgroup v1; v2 is one hierarchy
        mount --options remount,bind,rw "$hierarchy"
    fi
done
cat /proc/sys/kernel/random/uuid >/run/boot-id
mount --bind /run/boot-id /proc/sys/kernel/random/boot_id
exec /sbin/init
