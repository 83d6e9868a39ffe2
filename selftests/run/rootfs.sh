#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# usage: rootfs.sh
#
# Makes the input of the main job, once: the root file systems of two Debian
# containers, installed separately, each on an ext4 image of its own and with
# the checksums of all its files.  Prints the directory that holds them:
# a.img, a.sums, b.img, b.sums.

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=kernel-patches/steps.sh
. "$here/../../kernel-patches/steps.sh"

release=bookworm
packages_a=python3-minimal,curl
packages_b=perl,git,less

out=$cache/rootfs-$(sha256sum <"$here/rootfs.sh" | cut -c1-12)
tmp=$out.tmp

# tree NAME PACKAGES
tree()
{
	mkdir -p "$cache/debs"
	debootstrap --variant=minbase --include="$2" \
		--cache-dir="$cache/debs" $release "$tmp/$1"
	# As images of containers do, leave out what can be downloaded.
	rm -rf "$tmp/$1"/var/cache/apt/archives/*.deb \
		"$tmp/$1"/var/lib/apt/lists/* "${tmp:?}/$1"/dev/*
}

# image NAME
image()
{
	local mb

	cd "$tmp/$1"
	find . -type f -print0 | sort -z | xargs -0 sha256sum >"../$1.sums"
	mb=$(du -sm --apparent-size . | cut -f1)
	truncate -s $((mb * 3 / 2 + 64))M "../$1.img"
	mkfs.ext4 -qF -E assume_storage_prezeroed=1 -d . "../$1.img"
	cd ..
	rm -rf "${tmp:?}/$1"
}

if ! [ -d "$out" ]; then
	[ "$(id -u)" = 0 ] || die "making the containers takes root, once"
	lock rootfs
	if ! [ -d "$out" ]; then
		rm -rf "$tmp"
		mkdir -p "$tmp"
		step "install container a ($packages_a)" tree a "$packages_a"
		step "install container b ($packages_b)" tree b "$packages_b"
		step "image of container a" image a
		step "image of container b" image b
		mv "$tmp" "$out"
	fi
fi
echo "$out"
