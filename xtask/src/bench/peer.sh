#!/bin/busybox sh
# The first process of the Linux guest that the unikernel is compared with.
/bin/busybox mkdir -p /proc /sys /dev /data /memory /run /tmp /var/log/nginx /var/lib/nginx
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "$module"; done </modules
# Told to, it only measures its disk.
if /bin/busybox grep -q peer=block /proc/cmdline; then
    until [ -e /dev/xvda ]; do /bin/busybox usleep 1000; done
    /load block /dev/xvda
    /bin/busybox poweroff -f
fi
/bin/busybox ip link set lo up
until [ -e /sys/class/net/eth0 ]; do /bin/busybox usleep 1000; done
/bin/busybox ip addr add 10.0.0.3/24 dev eth0
/bin/busybox ip link set eth0 up
until [ -e /dev/xvda ]; do /bin/busybox usleep 1000; done
/bin/busybox mount -t vfat -o quiet /dev/xvda /data
/usr/sbin/nginx -c /nginx.conf
# What follows is for later measurements, and no part of the boot.
/bin/busybox dd if=/dev/zero of=/memory/8388608 bs=1M count=8
/load sink 8080 &
echo "peer: ready"
while :; do /bin/busybox sleep 3600; done
