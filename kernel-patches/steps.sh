# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For scripts that build something slow: where products are cached, Debian
# packages, locks, and long steps that show progress instead of their output.
# To be sourced.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/ksm_ext

die()
{
	echo "${0##*/}: $*" >&2
	exit 1
}

# need_packages PACKAGE...: installs those that are missing
need_packages()
{
	local missing=() p state installed

	if ! command -v dpkg-query apt-get >/dev/null; then
		die "not a Debian machine; install what these packages hold: $*"
	fi
	installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' \
		"$@" 2>/dev/null || true)"
	for p; do
		state=" installed:$p "
		[[ $installed == *$state* ]] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0

	if [ "$(id -u)" != 0 ]; then
		die "as root, run: apt-get install ${missing[*]}"
	fi
	export DEBIAN_FRONTEND=noninteractive
	step "package lists" apt-get -q update
	step "install ${#missing[@]} packages" apt-get -qy install \
		--no-install-recommends "${missing[@]}"
}

# lock NAME: waits until no other run holds NAME, then keeps it until exit
lock()
{
	mkdir -p "$cache"
	exec {lock_fd}>"$cache/$1.lock"
	if ! flock -n "$lock_fd"; then
		echo "  waiting for another run to finish with $1" >&2
		flock "$lock_fd"
	fi
}

# progress TEXT: reads a step's output, shows how long it has been running
progress()
{
	local text=$1 lines=0 begin=$SECONDS next tick=1 end='\r' t

	if [ ! -t 2 ]; then
		tick=30 end='\n'
	fi
	next=$((begin + tick))
	while :; do
		if IFS= read -r -t "$tick"; then
			lines=$((lines + 1))
		elif [ $? -le 128 ]; then
			break
		fi
		[ "$SECONDS" -ge "$next" ] || continue
		next=$((SECONDS + tick))
		t=$((SECONDS - begin))
		printf "  %-44s %3d:%02d %6d lines$end" "$text" \
			$((t / 60)) $((t % 60)) $lines >&2
	done
	t=$((SECONDS - begin))
	printf "  %-44s %3d:%02d %12s\n" "$text" $((t / 60)) $((t % 60)) '' >&2
}

# step TEXT COMMAND...: a long step.  Its output goes to a log, of which the
# end is shown if it fails; V=1 shows all of it instead.
step()
{
	local text=$1 flags=$- log status
	shift

	mkdir -p "$cache/log"
	log=$cache/log/${text//[^A-Za-z0-9.]/_}.log
	# Not as a condition: that would switch -e off inside of the command.
	set +e
	if [ "${V:-}" = 1 ]; then
		echo "  $text" >&2
		(set -e; "$@") </dev/null 2>&1 | tee "$log" >&2
		status=$?
	else
		(set -e; "$@") </dev/null 2>&1 | tee "$log" | progress "$text"
		status=$?
	fi
	[[ $flags != *e* ]] || set -e
	if [ $status != 0 ]; then
		if [ "${V:-}" != 1 ]; then
			grep -m 20 -E "^${0##*/}: |(error|Error|ERROR|E): " "$log" >&2 ||
				tail -n 20 "$log" >&2
		fi
		die "failed: $text (all of it: $log)"
	fi
}
