#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# usage: series-check.sh
#
# Is every patch of the series clean for checkpatch.pl --strict, and does the
# kernel build without warnings and boot after each of them?
#
# Environment:
#   STYLE=1   checkpatch.pl only
#   FROM=N    the first patch to look at, 1 if unset

set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
clone=$(dirname "$here")
# shellcheck source=kernel-patches/steps.sh
. "$here/steps.sh"

passed=0 failed=0

# verdict TEXT COMMAND...: runs the command, shows its output if it fails
verdict()
{
	local text=$1 out
	shift

	if out=$("$@" 2>&1 </dev/null); then
		passed=$((passed + 1))
		echo "ok $((passed + failed)) $text"
	else
		failed=$((failed + 1))
		echo "not ok $((passed + failed)) $text"
		tail -n 20 <<<"$out" | sed 's/^/#   /'
	fi
}

# New files are covered by MAINTAINERS from the first patch on.
style()
{
	(cd "$clone/build/linux" && scripts/checkpatch.pl --strict --quiet \
		--show-types --ignore FILE_PATH_CHANGES "$1")
}

# A copy of the series up to one patch keeps build/ of the clone as it is.
builds()
{
	"$work/kernel-patches/build.sh" default &&
		! grep ' warning: ' "$cache/log/build_kernel__default_.log"
}

boots()
{
	KERNEL=$work/build/bzImage-default LOG=$work/kernel.log TIMEOUT=120 \
		RUN='grep -q . /proc/version' "$clone/selftests/vm/vm"
}

"$here/build.sh" default </dev/null || die "the series does not build"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$here" "$work/kernel-patches"
rm "$work/kernel-patches"/*.patch

for patch in "$here"/[0-9]*.patch; do
	name=$(basename "$patch" .patch)
	case $name in
	0000-*) continue ;;
	esac
	cp "$patch" "$work/kernel-patches/"
	[ "$((10#${name%%-*}))" -ge "${FROM:-1}" ] || continue
	echo "# $name" >&2
	verdict "${name%%-*}: checkpatch.pl --strict" style "$patch"
	[ -n "${STYLE:-}" ] && continue
	verdict "${name%%-*}: builds" builds
	verdict "${name%%-*}: boots" boots
done

echo "1..$((passed + failed))"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
