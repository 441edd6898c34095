#!/bin/sh
# Run a command as the manifests' pod does: uid 10001 without rights, in a root file system that is read-only, in a
# cgroup that bounds its memory. Without a container engine: a mount namespace, chroot and a cgroup, so it needs root.
#
#   unshare --mount sh container.sh ROOT CGROUP PREFIX VENV CONFIG KEYS COMMAND...
#
# ROOT is an empty folder; PREFIX is where Python is installed; CONFIG and KEYS are mounted as the pod's folders are.
set -eu
root=$1 cgroup=$2 prefix=$3 venv=$4 config=$5 keys=$6
shift 6

mount --make-rprivate /
mount -t tmpfs -o mode=755 root "$root"
mkdir "$root/tmp"
mount -t tmpfs -o mode=1777,size=64m tmp "$root/tmp"  # before the rest: the environment may lie in /tmp itself
bind() { mkdir -p "$root$2"; mount --bind "$1" "$root$2"; mount -o remount,bind,ro "$root$2"; }
for folder in /usr /bin /sbin /lib /lib64; do [ ! -d "$folder" ] || bind "$folder" "$folder"; done
case $prefix in /usr) ;; *) bind "$prefix" "$prefix" ;; esac
bind "$venv" "$venv"
bind "$config" /etc/aiaas/config
bind "$keys" /etc/aiaas/keys
mkdir -p "$root/dev" "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount -o remount,ro "$root"

echo $$ >"$cgroup/cgroup.procs"
cd "$root"
exec chroot --userspec=10001:10001 --groups=10001 "$root" \
    /usr/bin/env -i "PATH=$venv/bin:/usr/bin:/bin" PYTHONDONTWRITEBYTECODE=1 "$@"
