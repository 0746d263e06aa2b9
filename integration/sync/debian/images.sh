#!/bin/bash
# Makes two images of one real machine in the folder $1: first.img, a Debian
# system with a database in it, and second.img, the same system some weeks later:
# packages upgraded, one installed, one removed, rows of the database updated.
#
# The packages come from wherever this machine gets its own: the first system
# has what was released with the distribution, the second what the machine's
# other sources of the distribution hold, security updates above all. There is
# no kernel, as in a container or a guest that is booted by its host, and apt
# keeps no caches, as in the images that Debian publishes for containers.
#
# Needs root. Everything happens in a mount and process namespace of its own, so
# whatever ends this script, no mount, loop device or process stays.
set -Eeuo pipefail

if [ "${2:-}" != inside ]; then
	exec unshare --mount --pid --fork --kill-child --mount-proc \
		bash "$0" "$1" inside
fi

folder=$1
root=$folder/root
first=$folder/first.img.new
second=$folder/second.img.new
rows=1000000
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

. /etc/os-release
release=$VERSION_CODENAME

# The sources of the machine that belong to its distribution, one a line:
# address, suite, component. A source that is listed twice counts once.
sources() {
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' |
		sed -n 's/ Debian$//p' | sort -u
}

mirror() { sources | awk -v release="$release" '$2 == release && $3 == "main" { print $1; exit }'; }

enter() { # IMAGE: mounts it the way a machine would
	mkdir -p "$root"
	mount -o loop "$1" "$root"
	mkdir -p "$root/proc"
	mount -t proc proc "$root/proc"
}

leave() {
	umount "$root/proc"
	umount "$root"
	rmdir "$root"
}

inside() { chroot "$root" "$@"; }

install_system() {
	debootstrap --variant=minbase "$release" "$root" "$(mirror)" >"$folder/debootstrap.log" ||
		{ cat "$folder/debootstrap.log" >&2; return 1; }
	# No service starts inside, and dpkg need not wait for the disk.
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/lab"
	cat >"$root/etc/apt/apt.conf.d/lab" <<-'CONF'
		Dir::Cache::pkgcache "";
		Dir::Cache::srcpkgcache "";
		DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };
	CONF
	mount -t proc proc "$root/proc"
	sources | sed 's/^/deb /' >"$root/etc/apt/sources.list"
	inside apt-get -qq update
	packages --target-release "$release" ca-certificates curl nginx-light \
		openssh-server openssl python3 sqlite3 vim-tiny
}

packages() { inside apt-get -qq -y --no-install-recommends install "$@" >>"$folder/apt.log" 2>&1; }

database() { inside sqlite3 /var/lib/app/app.db; }

fill_database() {
	mkdir -p "$root/var/lib/app"
	database <<-SQL
		CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, body TEXT, price INTEGER);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $rows)
		INSERT INTO item SELECT i, 'item ' || i, hex(randomblob(100)), i % 1000 FROM n;
		CREATE INDEX by_name ON item (name);
	SQL
}

update_database() {
	database <<-SQL
		UPDATE item SET body = hex(randomblob(100)), price = price + 1 WHERE id IN
			(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
			SELECT 1 + abs(random()) % $rows FROM n);
	SQL
}

make_first() {
	truncate -s 4G "$first"
	mkfs.ext4 -q "$first"
	mkdir -p "$root"
	mount -o loop "$first" "$root"
	install_system
	fill_database
	leave
}

make_second() {
	cp --sparse=always "$first" "$second"
	enter "$second"
	inside apt-get -qq update
	inside apt-get -qq -y dist-upgrade >>"$folder/apt.log" 2>&1
	packages rsync less
	inside apt-get -qq -y --purge remove vim-tiny >>"$folder/apt.log" 2>&1
	update_database
	leave
}

mkdir -p "$folder"
: >"$folder/apt.log"
trap 'tail -n 20 "$folder/apt.log" >&2' ERR
if [ -z "$(mirror)" ]; then
	echo "no source of packages for $release is known; try: apt-get update" >&2
	exit 1
fi
make_first
make_second
mv "$first" "$folder/first.img"
mv "$second" "$folder/second.img"
