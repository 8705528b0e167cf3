#!/bin/bash
# Runs in dom0. Times one operation of `xl` and the same of `xenops`, in turn, on the same kernel, ramdisk, disk and
# bridge. Prints `MEASURE what who seconds` lines. Nothing but builtins between the two readings of the clock.
#
# usage: measure.sh ROUNDS PART...
#   pv         PV guests, with and without devices
#   container  guests in a hardware container, PVH and HVM
#   memory     resident memory of each toolstack's processes, KiB
set -eu
ROUNDS=$1
shift
LOG=/var/log/xen/console/guest-bench.log
KERNEL='kernel="/guests/vmlinux"
ramdisk="/guests/initramfs"
memory=256
vnc=0
vcpus=1
type="pv"
on_poweroff="destroy"
on_reboot="destroy"
on_crash="destroy"'

bare() { printf 'name="%s"\n%s\nextra="console=hvc0"\n' "$1" "$KERNEL"; }
full() {
  printf 'name="bench"\n%s\nextra="console=hvc0 gip=10.9.0.31"\n' "$KERNEL"
  printf 'disk=["phy:%s,xvda,w"]\nvif=["bridge=xenbr0,mac=00:16:3e:00:00:31"]\n' "$LOOP"
}

truncate -s 64M /tmp/bench.img
LOOP=$(losetup -f --show /tmp/bench.img)
bare bench >/tmp/bare.cfg
full >/tmp/full.cfg

# timed WHAT WHO COMMAND...
timed() {
  local what=$1 who=$2 begin end
  shift 2
  begin=$EPOCHREALTIME
  "$@" >/tmp/bench.out 2>&1 || { echo "FAILED $what $who"; cat /tmp/bench.out; exit 1; }
  end=$EPOCHREALTIME
  say "$what" "$who" "$begin" "$end"
}

say() { echo "MEASURE $1 $2 $(( (${4/./} - ${3/./}) / 1000 ))"; }

# until_line WHAT WHO TEXT COMMAND...: the command itself, and to the moment TEXT shows on the guest's console.
until_line() {
  local what=$1 who=$2 text=$3 begin line
  shift 3
  : >>"$LOG"
  exec 7< <(exec tail -n0 -F "$LOG" 2>/dev/null)
  begin=$EPOCHREALTIME
  "$@" >/tmp/bench.out 2>&1 || { echo "FAILED $what $who"; cat /tmp/bench.out; exit 1; }
  say "$what-command" "$who" "$begin" "$EPOCHREALTIME"
  while read -r -t 120 -u 7 line; do
    case "$line" in *"$text"*) say "$what" "$who" "$begin" "$EPOCHREALTIME"; exec 7<&-; return;; esac
  done
  echo "FAILED $what $who: no line with $text"; exit 1
}

xl_create() { xl create -q "$@"; }
ours_create() { xenops create --start "$@"; }
ours_paused() { xenops create --start --paused "$1"; }

measure_pv() {
  for ((round = 0; round < ROUNDS; round++)); do
    timed create-paused xl xl create -q -p /tmp/bare.cfg
    timed destroy xl xl destroy bench
    timed create-paused xenops ours_paused /tmp/bare.cfg
    timed destroy xenops xenops destroy bench
  done
  for ((round = 0; round < ROUNDS; round++)); do
    until_line bare-userspace xl "GUEST: init" xl_create /tmp/bare.cfg
    timed destroy-running xl xl destroy bench
    until_line bare-userspace xenops "GUEST: init" ours_create /tmp/bare.cfg
    timed destroy-running xenops xenops destroy bench
  done
  for ((round = 0; round < ROUNDS; round++)); do
    until_line full-ping xl "GUEST: net up" xl_create /tmp/full.cfg
    timed destroy-full xl xl destroy bench
    until_line full-ping xenops "GUEST: net up" ours_create /tmp/full.cfg
    timed destroy-full xenops xenops destroy bench
  done
}

# Guests in a hardware container, to the moment they may run. The HVM one finds nothing to boot from.
measure_container() {
  bare bench | sed 's/type="pv"/type="pvh"/' >/tmp/pvh.cfg
  printf 'name="bench"\ntype="hvm"\nmemory=256\nvcpus=1\nvnc=0\nserial="pty"\non_poweroff="destroy"\n' >/tmp/hvm.cfg
  for kind in pvh hvm; do
    for ((round = 0; round < ROUNDS; round++)); do
      timed $kind-unpaused xl xl create -q /tmp/$kind.cfg
      timed $kind-destroy xl xl destroy bench
      timed $kind-unpaused xenops ours_create /tmp/$kind.cfg
      timed $kind-destroy xenops xenops destroy bench
    done
  done
}

resident() {
  local pid total=0 kib
  for pid in $(pidof "$1"); do
    while read -r key kib _; do [ "$key" = VmRSS: ] && total=$((total + kib)); done <"/proc/$pid/status"
  done
  echo "$total"
}
measure_memory() {
  for who in xl xenops; do
    for count in 1 10; do
      for ((n = 0; n < count; n++)); do
        bare "bench$n" | sed s/memory=256/memory=128/ >"/tmp/bench$n.cfg"
        if [ $who = xl ]; then xl create -q -p "/tmp/bench$n.cfg"; else ours_paused "/tmp/bench$n.cfg" >/dev/null; fi
      done
      program=$([ $who = xl ] && echo xl || echo xenopsd)
      echo "MEASURE resident-$count $who $(resident $program)"
      for ((n = 0; n < count; n++)); do
        if [ $who = xl ]; then xl destroy "bench$n"; else xenops destroy "bench$n" >/dev/null; fi
      done
    done
  done
}

for part in "$@"; do "measure_$part"; done
