#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Makes a Debian package of the patched kernel.
#
# usage: deb.sh OUT
#
# Packages go to the folder OUT.  By default it is the kernel that all tests
# run on, as build.sh made it: small, without modules, for virtual machines.
#
# Environment:
#   KCONFIG   a config to build another kernel from, such as
#             /boot/config-6.1.0-28-amd64, by the kernel's own bindeb-pkg.  What
#             ksm_ext needs is switched on.  With Debian's config this takes
#             hours and some 30 GiB.

set -euo pipefail
shopt -s extglob
here=$(cd "$(dirname "$0")" && pwd)
build=$(dirname "$here")/build
# shellcheck source=kernel-patches/steps.sh
. "$here/steps.sh"
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

out=$(realpath -m "$1")
kernel=$(dirname "$(readlink -f "$build/bzImage-default")")
source=$(readlink -f "$build/linux")
[ -r "$kernel/bzImage" ] || die "no kernel at $kernel: run make kernel"

# release IMAGE: what uname -r will say.  The boot protocol says where it is.
release()
{
	local at

	at=$(od -An -tu2 -j526 -N2 "$1")
	dd if="$1" bs=1 skip=$((at + 512)) count=64 status=none |
		tr '\0' ' ' | cut -d ' ' -f 1
}

# Like the kernel's own packages, it leaves the rest to /etc/kernel/*.d.
hooks()
{
	local script

	for script in preinst postinst prerm postrm; do
		cat >"$1/DEBIAN/$script" <<-END
			#!/bin/sh
			set -e
			export DEB_MAINT_PARAMS="\$*" INITRD=No
			if [ -d /etc/kernel/$script.d ]; then
			        run-parts --arg=$2 --arg=/boot/vmlinuz-$2 /etc/kernel/$script.d
			fi
		END
		chmod 755 "$1/DEBIAN/$script"
	done
}

# Package names have no underscores.
package()
{
	local dir=$build/deb-kernel release version

	release=$(release "$kernel/bzImage")
	version=${release%%-*}
	rm -rf "$dir"
	mkdir -p "$dir/DEBIAN" "$dir/boot" \
		"$dir/usr/share/doc/linux-image-$version-ksm-ext" "$out"
	cp "$kernel/bzImage" "$dir/boot/vmlinuz-$release"
	cp "$kernel/System.map" "$dir/boot/System.map-$release"
	cp "$kernel/config" "$dir/boot/config-$release"
	cp "$source/COPYING" \
		"$dir/usr/share/doc/linux-image-$version-ksm-ext/copyright"
	cat >"$dir/DEBIAN/control" <<-END
		Package: linux-image-$version-ksm-ext
		Version: $version-$(basename "$kernel" | cut -c1-8)
		Architecture: amd64
		Maintainer: ksm_ext <ksm_ext@localhost>
		Section: kernel
		Priority: optional
		Description: Linux kernel with ksm_ext, for virtual machines
		 Linux $version with patches that let equal pages of files share memory.
		 Drivers for virtio devices, ext4, xfs and btrfs are built in; there are
		 no modules, and no initramfs is needed.  The root file system is best
		 named as root=/dev/vda1 or root=PARTUUID=...
	END
	hooks "$dir" "$release"
	rm -f "$out"/linux-image-*-ksm-ext_*.deb
	dpkg-deb --root-owner-group --build "$dir" "$out"
	rm -rf "$dir"
}

# A source tree of its own: that of build.sh is for all configs and clones.
checkout()
{
	rm -rf "$top"
	git clone -q --shared --no-checkout "$source" "$top/linux"
	cd "$top/linux"
	git checkout -q base
	git apply --whitespace=nowarn "$here"/!(0000-*).patch
}

kernel_make()
{
	CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$top make -C "$top/linux" \
		CC='ccache gcc' KBUILD_BUILD_USER=ksm_ext \
		KBUILD_BUILD_HOST=localhost DPKG_FLAGS=-d "-j$(nproc)" "$@"
}

configure()
{
	local sym

	cp "$KCONFIG" "$top/linux/.config"
	# Of two lines the later one counts.  Debian's keys are not at hand.
	cat "$here/config/ksm_ext.config" - >>"$top/linux/.config" <<-END
		CONFIG_BPF_SYSCALL=y
		CONFIG_BPF_JIT=y
		CONFIG_DEBUG_INFO_DWARF5=y
		CONFIG_DEBUG_INFO_BTF=y
		CONFIG_SYSTEM_TRUSTED_KEYS=""
		CONFIG_SYSTEM_REVOCATION_KEYS=""
		CONFIG_LOCALVERSION="-ksm-ext"
		# CONFIG_LOCALVERSION_AUTO is not set
	END
	kernel_make olddefconfig
	for sym in KSM_EXT DEBUG_INFO_BTF BPF_JIT; do
		grep -qx "CONFIG_$sym=y" "$top/linux/.config" ||
			die "with this config, CONFIG_$sym=y can not be"
	done
}

keep()
{
	mkdir -p "$out"
	cp "$top"/linux-image-*-ksm-ext*.deb "$out/"
	rm -f "$out"/linux-image-*-dbg_*.deb
}

if [ -z "${KCONFIG:-}" ]; then
	step "package the kernel" package
	exit
fi
[ -r "$KCONFIG" ] || die "no config at KCONFIG=$KCONFIG"
KCONFIG=$(realpath "$KCONFIG")
need_packages cpio debhelper dpkg-dev fakeroot kmod rsync
top=$cache/deb-$(basename "$kernel")-$(sha256sum <"$KCONFIG" | cut -c1-12)
lock "$(basename "$top")"
if ! [ -e "$top/done" ]; then
	step "source of the packaged kernel" checkout
	step "configure the packaged kernel" configure
	step "build the packaged kernel" kernel_make bindeb-pkg
	touch "$top/done"
fi
keep
