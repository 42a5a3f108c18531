#!/bin/bash
# Becomes a small machine that is booted by the real systemd: run by conftest.py as the first
# process of its own pid, mount, uts, ipc and cgroup namespaces.  machine.sh PYTHON VENV PACKAGE
#
# What a unit can see is private to this machine: /etc, /var, /srv and the folders of units are
# overlays or empty, /run, /dev and /opt are new. Network, /usr and the rest are the host's.
set -eu
python=$1 venv=$2 package=$3
mount --make-rprivate /

# /opt/prefork looks as the units expect it: a virtual environment. Its parts are mounted there from
# wherever the tests run, because PrivateTmp= and ProtectHome= would hide the originals.
build=/mnt
mount -t tmpfs tmpfs $build
mkdir -p $build/{etc,var,srv,opt}/{upper,work} $build/{dev,python,prefork}
version=$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}")')
base=$("$python" -c 'import sys; print(sys.base_prefix)')
for folder in etc var srv opt; do
    mkdir -p /$folder
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$build/$folder/upper,workdir=$build/$folder/work" /$folder
done
site=/opt/prefork/lib/$version/site-packages
mkdir -p /opt/python /opt/prefork/bin $site $build/site/{upper/prefork,work}
mount --bind "$base" /opt/python
mount -t overlay overlay -o "lowerdir=$venv/lib/$version/site-packages,upperdir=$build/site/upper,workdir=$build/site/work" $site
mount --bind "$package" $site/prefork
ln -s /opt/python/bin/"$version" /opt/prefork/bin/python3
printf 'home = /opt/python/bin\ninclude-system-site-packages = false\n' >/opt/prefork/pyvenv.cfg
printf '#!/opt/prefork/bin/python3\nfrom prefork.cli.main import main\nmain()\n' >/opt/prefork/bin/prefork
chmod 755 /opt/prefork/bin/prefork

# A /dev with nothing of the host's but its harmless devices.
for node in null zero full random urandom tty; do
    touch $build/dev/$node
    mount --bind /dev/$node $build/dev/$node
done
touch $build/dev/console
mount --bind /dev/null $build/dev/console
mkdir $build/dev/{shm,pts}
mount -t tmpfs -o mode=1777 tmpfs $build/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts $build/dev/pts
ln -s pts/ptmx $build/dev/ptmx
ln -s /proc/self/fd $build/dev/fd
ln -s fd/0 $build/dev/stdin
ln -s fd/1 $build/dev/stdout
ln -s fd/2 $build/dev/stderr
mount --rbind $build/dev /dev

mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
# systemd sets kernel parameters where it may: they are the host's, so it may not.
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount -R /sys/fs/cgroup 2>/dev/null || :
mount -t cgroup2 cgroup2 /sys/fs/cgroup

# Units: the journal, the slices, and empty targets instead of everything Debian would start.
mkdir -p $build/units
cp -t $build/units /lib/systemd/system/systemd-journald{.service,.socket,-dev-log.socket}
for target in sysinit basic sockets shutdown multi-user umount network; do
    printf '[Unit]\nDefaultDependencies=no\n' >$build/units/$target.target
done
printf '[Unit]\nRequires=systemd-journald.service\nAfter=systemd-journald.service\n' >$build/units/machine.target
mount --bind $build/units /lib/systemd/system
rm -rf /etc/systemd/system /usr/local/lib/systemd/system 2>/dev/null || :
mkdir -p /etc/systemd/{system,journald.conf.d} /etc/prefork
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitBurst=0\n' >/etc/systemd/journald.conf.d/machine.conf

exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    container=machine SYSTEMD_GENERATOR_PATH=/nonexistent SYSTEMD_LOG_TARGET=journal \
    /lib/systemd/systemd --system --unit=machine.target --show-status=no
