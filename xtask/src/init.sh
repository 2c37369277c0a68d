#!/bin/bash
# The first process of the test bed's dom0. Whatever happens it ends by telling the serial line, where the host reads
# it: "bed: ready" or "bed: failed".

export PATH=/usr/sbin:/usr/bin:/usr/lib/xen/bin HOME=/root TERM=dumb LC_ALL=C

# A program that is there already keeps its name.
/usr/bin/busybox --install -s /usr/bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
# Without these the lock of the hotplug scripts never sees that it holds its file.
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount -t tmpfs run /run
mount -t tmpfs -o size=80% tmp /tmp
exec </dev/console >/dev/console 2>&1

fail() {
    echo "bed: failed: $*"
    poweroff -f
    while :; do sleep 60; done
}

# wait_for WHAT TEST...: a tenth of a second at a time, ten seconds at most.
wait_for() {
    local what=$1 i
    shift
    for ((i = 0; i < 100; i++)); do
        "$@" && return 0
        sleep 0.1
    done
    fail "$what did not appear"
}

# option NAME: its value on the kernel's command line.
option() {
    local word
    for word in $(</proc/cmdline); do
        [[ $word == "$1="* ]] && echo "${word#*=}"
    done
}

mkdir -p /run/xen /run/xenstored /run/lock
hostname dom0

while read -r module; do
    insmod "$module" || fail "insmod $module"
done </etc/modules.bed
mount -t xenfs xenfs /proc/xen || fail "no xenfs: does this kernel run under Xen?"

store=$(option bed.store)
case $store in
    oxenstored) oxenstored --pid-file /run/xen/xenstored.pid ;;
    *) xenstored --pid-file /run/xen/xenstored.pid ;;
esac || fail "cannot start ${store:-xenstored}"
wait_for "the store's socket" test -S /run/xenstored/socket
xen-init-dom0 || fail xen-init-dom0
xenconsoled --log=all --log-dir=/var/log/xen --pid-file=/run/xen/xenconsoled.pid || fail xenconsoled

# The host is on the far side of eth0, so guests in the same bridge can be reached from there.
ip link set lo up
ip link add xenbr0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0 || fail "cannot make the bridge xenbr0"
wait_for eth0 test -e /sys/class/net/eth0
ip link set eth0 master xenbr0 up
# QEMU's network would answer in the place of a guest that is not there yet: it takes what no port is known for to the
# network of the machine below, where anybody may have that address.
echo 0 >/sys/class/net/eth0/brport/unicast_flood || fail "cannot keep the guests' frames in the bridge"
ip addr add 10.0.0.1/24 dev xenbr0
ip link set xenbr0 up
ip route add default via 10.0.0.254

# nc ignores SIGCHLD and its programs would inherit that; xl and bash wait for their children.
nc -ll -p 10 -e /usr/bin/env --default-signal=CHLD /bin/bash /bed/serve </dev/null &
wait_for "the control port" grep -qE ':000A 0+:0000 0A' /proc/net/tcp /proc/net/tcp6

echo "bed: ready"
while :; do sleep 3600; done
