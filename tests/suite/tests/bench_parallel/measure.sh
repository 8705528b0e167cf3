#!/bin/bash
# Runs in dom0. Times the creation, paused, of COUNT bare PV guests at once by `xl` and by `xenops`, in turn, and their
# destruction. Prints `MEASURE what who milliseconds` lines.
#
# usage: measure.sh ROUNDS COUNT
set -eu
ROUNDS=$1 COUNT=$2

for ((n = 0; n < COUNT; n++)); do
  cat >"/tmp/many$n.cfg" <<END
name="many$n"
kernel="/guests/vmlinux"
ramdisk="/guests/initramfs"
extra="console=hvc0"
memory=128
vnc=0
vcpus=1
type="pv"
on_poweroff="destroy"
on_reboot="destroy"
on_crash="destroy"
END
done

xl_create() { xl create -q -p "/tmp/many$1.cfg"; }
xl_destroy() { xl destroy "many$1"; }
xenops_create() { xenops create --start --paused "/tmp/many$1.cfg"; }
xenops_destroy() { xenops destroy "many$1"; }

# at_once WHAT WHO: the function WHO_WHAT for each guest, all at the same time.
at_once() {
  local what=$1 who=$2 begin end n pids=()
  begin=$EPOCHREALTIME
  for ((n = 0; n < COUNT; n++)); do
    "${who}_$what" "$n" >"/tmp/many$n.out" 2>&1 &
    pids+=($!)
  done
  for ((n = 0; n < COUNT; n++)); do
    wait "${pids[n]}" || { echo "FAILED $what $who $n"; cat "/tmp/many$n.out"; exit 1; }
  done
  end=$EPOCHREALTIME
  echo "MEASURE $what $who $(( (${end/./} - ${begin/./}) / 1000 ))"
}

for ((round = 0; round < ROUNDS; round++)); do
  for who in xl xenops; do
    at_once create $who
    paused=$(xl list | grep -c '^many.* --p---')
    [ "$paused" = "$COUNT" ] || { echo "FAILED $who: $paused of $COUNT are paused"; xl list; exit 1; }
    at_once destroy $who
  done
done
