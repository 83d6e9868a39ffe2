#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds the patched kernel, libbpf and bpftool from Debian's kernel source.
#
# usage: build.sh [CONFIG]
#
# CONFIG is default (the kernel with ksm_ext), off (the same without ksm_ext),
# pristine (without any patch), or what config/ adds to default: debug, kasan,
# kcsan.  Products are cached by content outside of the clone, and linked from
# build/.
#
# Environment:
#   LINUX_TARBALL   another kernel source of the 6.12 series
#   PATCHES         directory with the patches (default: that of this script)
#   V=1             show the output of all commands

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(dirname "$here")/build
# shellcheck source=kernel-patches/steps.sh
. "$here/steps.sh"

# What is meant for a make above is not for the kernel's.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

config=${1:-default}
tarball=${LINUX_TARBALL:-/usr/src/linux-source-6.12.tar.xz}
patch_dir=${PATCHES:-$here}
jobs=-j$(nproc)

# shellcheck disable=SC2046 # many words
need_packages $(grep -v '^#' "$here/packages")
[ -r "$tarball" ] || die "no kernel source at $tarball"

shopt -s nullglob extglob
patches=("$patch_dir"/!(0000-*).patch)	# not the cover letter
[ "$config" != pristine ] || patches=()
fragments=("$here/config/base.config")
if [ "$config" != off ] && grep -qs 'config KSM_EXT$' "${patches[@]}" /dev/null
then
	fragments+=("$here/config/ksm_ext.config")
fi
case $config in
default|off|pristine) ;;
debug|kasan|kcsan) fragments+=("$here/config/$config.config") ;;
*) die "no config named '$config': use default, off, pristine, debug, kasan or kcsan" ;;
esac

# Names for everything that follows: by content
base=$(sha256sum <"$tarball" | cut -c1-12)
content()
{
	{
		echo "$base"
		gcc --version
		cat "$here/build.sh" "${patches[@]}" "${fragments[@]}"
	} | sha256sum | cut -c1-16
}
key=$(content)
src=$cache/linux-$base			# work tree, series applied
# Were it the same one, all that is patched would look new to the next build.
[ "$config" != pristine ] || src=$cache/pristine-$base
tools=$cache/tools-$base		# libbpf and bpftool
obj=$cache/obj-$base-$config		# objects of the latest build
out=$cache/$key				# what is kept

# Every object file that an earlier build made serves the next one: only the
# files that differ between two series get a new time stamp.
unpack()
{
	rm -rf "$src" "$src.new"
	mkdir -p "$src.new"
	tar -C "$src.new" --strip-components=1 -xf "$tarball"
	cd "$src.new"
	git init -q
	git config core.looseCompression 1
	git config gc.auto 0
	git add -fA .
	git -c user.name=ksm_ext -c user.email=ksm_ext@localhost \
		commit -qm 'Debian kernel source'
	git tag base
	mv "$src.new" "$src"
}

series()
{
	local p version

	cd "$src"
	version=$(git show base:Makefile | awk '
		/^(VERSION|PATCHLEVEL|SUBLEVEL) = / { printf "%s%s", dot, $3; dot = "." }')
	export GIT_INDEX_FILE=$src/.git/series-index
	git read-tree base
	for p in "${patches[@]}"; do
		git apply --cached --whitespace=nowarn "$p" ||
			die "${p##*/} does not apply to Linux $version"
	done
	tree=$(git write-tree)
	unset GIT_INDEX_FILE
	[ "$key" = "$(content)" ] ||
		die "patches or configs were changed just now: start again"
	git read-tree --reset -u "$tree"
}

kernel_make()
{
	make -C "$src" O="$obj" CC='ccache gcc' KBUILD_BUILD_TIMESTAMP=@0 \
		KBUILD_BUILD_USER=ksm_ext KBUILD_BUILD_HOST=localhost \
		"$jobs" "$@"
}

configure()
{
	local sym value

	mkdir -p "$obj"
	kernel_make tinyconfig
	cat "${fragments[@]}" >>"$obj/.config"
	kernel_make olddefconfig
	while IFS='=' read -r sym value; do
		if [ "$value" = n ]; then
			! grep -q "^$sym=" "$obj/.config"
		else
			grep -qxF "$sym=$value" "$obj/.config"
		fi || die "this kernel's Kconfig refuses $sym=$value"
	done < <(cat "${fragments[@]}" | grep '^CONFIG_' | tac |
		awk -F= '!seen[$1]++')	# the last one counts
}

libbpf()
{
	mkdir -p "$tools.new/libbpf"
	make -C "$src/tools/lib/bpf" BUILD_STATIC_ONLY=1 "$jobs" \
		OUTPUT="$tools.new/libbpf/" DESTDIR="$tools.new" prefix= \
		libdir=/lib install
}

bpftool()
{
	mkdir -p "$tools.new/bpftool"
	make -C "$src/tools/bpf/bpftool" "$jobs" CLANG=clang-19 \
		LLVM_STRIP=llvm-strip-19 feature-llvm=0 feature-libcap=0 \
		OUTPUT="$tools.new/bpftool/"
	mkdir -p "$tools.new/bin"
	mv "$tools.new/bpftool/bpftool" "$tools.new/bin/"
	rm -r "$tools.new/bpftool" "$tools.new/libbpf" "$tools.new/lib/"*.so*
}

keep()
{
	local objects=("$obj"/mm/ksm_ext/*.o)

	mkdir -p "$out.new"
	# Functions of ksm_ext, as stack traces name them: see vm/ours.awk
	{ [ ${#objects[@]} = 0 ] || nm "${objects[@]}"; } |
		awk '$2 ~ /^[tT]$/ { sub(/\..*/, "", $3); print $3 }' |
		sort -u >"$out.new/symbols"
	cp "$obj/arch/x86/boot/bzImage" "$obj/System.map" "$out.new/"
	cp "$obj/.config" "$out.new/config"
	"$tools/bin/bpftool" btf dump file "$obj/vmlinux" format c \
		>"$out.new/vmlinux.h"
	mv "$out.new" "$out"
}

# replace_link TARGET NAME: keeps the time stamp of a link that is right
replace_link()
{
	[ "$(readlink "$build/$2")" = "$1" ] || ln -sfn "$1" "$build/$2"
}

export CCACHE_DIR=$cache/ccache
if ! [ -d "$out" ] || ! [ -d "$tools" ]; then
	lock "${src##*/}"
	[ -d "$src" ] || step "unpack the kernel source" unpack
	step "apply ${#patches[@]} patches" series
	if ! [ -d "$tools" ]; then
		rm -rf "$tools.new"
		step "build libbpf" libbpf
		step "build bpftool" bpftool
		mv "$tools.new" "$tools"
	fi
	if ! [ -d "$out" ]; then
		step "configure kernel ($config)" configure
		step "build kernel ($config)" kernel_make bzImage
		rm -rf "$out.new"
		step "vmlinux.h" keep
	fi
fi

mkdir -p "$build"
replace_link "$out/bzImage" "bzImage-$config"
replace_link "$out/symbols" "symbols-$config"
replace_link "$obj/vmlinux" "vmlinux-$config"
[ "$config" = pristine ] || replace_link "$src" linux
replace_link "$tools" tools
replace_link "$tools/bin/bpftool" bpftool
if [ "$config" = default ]; then
	cmp -s "$out/vmlinux.h" "$build/vmlinux.h" ||
		cp "$out/vmlinux.h" "$build/vmlinux.h"
fi
