#!/bin/busybox sh
# Brings the memory of the guest's CXL type-3 device into use, by sysfs alone: use_cxl.sh movable | kernel | devdax.
# movable, kernel: a memory node by the driver kmem, its blocks in the movable zone or in the kernel's; devdax: the
# device file /dev/dax0.0, which programs map.
set -e
cxl=/sys/bus/cxl/devices
dax=/sys/bus/dax
root=$cxl/decoder0.0
endpoint=$(basename $cxl/endpoint*/decoder*.0)
bytes=$(cat $cxl/mem0/ram/size)

case $1 in
  movable) echo online_movable ;;
  kernel) echo online_kernel ;;
  devdax) echo offline ;;
esac >/sys/devices/system/memory/auto_online_blocks

region=$(cat $root/create_ram_region)
echo "$region" >$root/create_ram_region
echo 256 >"$cxl/$region/interleave_granularity"
echo 1 >"$cxl/$region/interleave_ways"
echo ram >"$cxl/$endpoint/mode"
echo "$bytes" >"$cxl/$endpoint/dpa_size"
echo "$bytes" >"$cxl/$region/size"
echo "$endpoint" >"$cxl/$region/target0"
echo 1 >"$cxl/$region/commit"
echo "$region" >/sys/bus/cxl/drivers/cxl_region/bind

if [ "$1" = devdax ]; then
  [ ! -e $dax/drivers/kmem/dax0.0 ] || echo dax0.0 >$dax/drivers/kmem/unbind
  echo dax0.0 >$dax/drivers/device_dax/new_id
  [ -e $dax/drivers/device_dax/dax0.0 ] || echo dax0.0 >$dax/drivers/device_dax/bind
fi
