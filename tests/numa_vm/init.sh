#!/bin/busybox sh
# First process of a guest: prepares the system, runs every test, sends the results through the second serial port.
# The kernel passes GUEST_MACHINE and CXL_USE from its command line as environment.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
mount -t cgroup2 none /sys/fs/cgroup
stty -F /dev/ttyS0 -onlcr
stty -F /dev/ttyS1 raw
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
mkdir /results
[ -z "$CXL_USE" ] || /tests/use_cxl.sh "$CXL_USE" || echo "guest $GUEST_MACHINE: its device cannot be used"
echo "guest $GUEST_MACHINE: ready after $(cut -d' ' -f1 /proc/uptime) s"
cd /tests
while read -r test; do
  echo "guest $GUEST_MACHINE: $test"
  "./$test" "--gtest_output=xml:/results/$test.xml"
  echo $? >"/results/$test.status"
done <tests
[ ! -e record_tree.sh ] || ./record_tree.sh >"/results/$GUEST_MACHINE.tree"
echo "guest $GUEST_MACHINE: done after $(cut -d' ' -f1 /proc/uptime) s"
tar -C /results -cf /dev/ttyS1 .
poweroff -f
