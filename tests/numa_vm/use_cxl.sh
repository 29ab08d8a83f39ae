#!/bin/busybox sh
# Brings the memory of the guest's CXL type-3 device into use, by sysfs alone: use_cxl.sh USE.
# movable, kernel: volatile memory as a memory node by the driver kmem, its blocks in the movable zone or in the kernel's.
# devdax: volatile memory as the device file /dev/dax0.0, which programs map.
# persistent: persistent memory, a namespace of it, and that as a memory node, movable.
set -e
cxl=/sys/bus/cxl/devices
nd=/sys/bus/nd
dax=/sys/bus/dax
root=$cxl/decoder0.0
endpoint=$cxl/$(basename $cxl/endpoint*/decoder*.0)

case $1 in
  movable | persistent) echo online_movable ;;
  kernel) echo online_kernel ;;
  devdax) echo offline ;;
esac >/sys/devices/system/memory/auto_online_blocks

case $1 in
  persistent) mode=pmem ;;
  *) mode=ram ;;
esac
bytes=$(cat $cxl/mem0/$mode/size)
name=$(cat $root/create_${mode}_region)
echo "$name" >$root/create_${mode}_region
region=$cxl/$name
[ $mode = ram ] || echo 00000000-0000-0000-0000-000000000001 >"$region/uuid"
echo 256 >"$region/interleave_granularity"
echo 1 >"$region/interleave_ways"
echo $mode >"$endpoint/mode"
echo "$bytes" >"$endpoint/dpa_size"
echo "$bytes" >"$region/size"
basename "$endpoint" >"$region/target0"
echo 1 >"$region/commit"
echo "$name" >/sys/bus/cxl/drivers/cxl_region/bind

case $1 in
  devdax)
    [ ! -e $dax/drivers/kmem/dax0.0 ] || echo dax0.0 >$dax/drivers/kmem/unbind
    echo dax0.0 >$dax/drivers/device_dax/new_id
    [ -e $dax/drivers/device_dax/dax0.0 ] || echo dax0.0 >$dax/drivers/device_dax/bind
    ;;
  persistent)
    namespace=$nd/devices/namespace0.0
    until [ -e $namespace/uuid ]; do sleep 0.1; done  # the region's devices appear some time after it is bound
    echo 00000000-0000-0000-0000-000000000002 >$namespace/uuid
    cat $nd/devices/region0/available_size >$namespace/size
    echo ram >$nd/devices/dax0.0/mode
    echo 00000000-0000-0000-0000-000000000003 >$nd/devices/dax0.0/uuid
    echo namespace0.0 >$nd/devices/dax0.0/namespace
    echo dax0.0 >$nd/drivers/dax_pmem/bind
    echo dax0.0 >$dax/drivers/device_dax/unbind
    echo dax0.0 >$dax/drivers/kmem/new_id
    ;;
esac
