#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# usage, in the guest: ksmx.sh [TEST...]
#
# Tests of ksmx, the program: what it says, how it fails, and what is left when
# it does.  Prints TAP.

clone=$(cd "$(dirname "$0")/.." && pwd)
objects=$clone/build/selftests
sysfs=/sys/kernel/mm/ksm_ext
pins=/sys/fs/bpf/ksm_ext
work=${KSM_EXT_DIR:-$PWD}/ksmx
PATH=$clone/build:$PATH
manuals=$clone/build/man
# What fails in a test is noted here, since parts of it run in subshells.
errors=$(mktemp)

wrong() { echo "$*" >>"$errors"; }

# expect STATUS PATTERN COMMAND...: its exit status is this one, and something
# in its output matches
# shellcheck disable=SC2317 # reached through "$test"
expect()
{
	local want=$1 pattern=$2 out status
	shift 2

	out=$("$@" 2>&1)
	status=$?
	if [ $status != "$want" ] || ! grep -q -e "$pattern" <<<"$out"; then
		wrong "$*: status $status, wanted $want and '$pattern': $out"
		return 1
	fi
}

# same WHAT GOT WANTED
same() { [ "$2" = "$3" ] || wrong "$1 is '$2', not '$3'"; }

policy() { cat $sysfs/policy; }

# wait_for COMMAND...: until it succeeds, or 20 s are over
wait_for()
{
	local i

	for ((i = 0; i < 200; i++)); do
		! "$@" || return 0
		sleep 0.1
	done
	wrong "waited in vain for: $*"
	return 1
}

# Through memory, where cp and cat would have the file system share blocks
copy() { dd if="$1" of="$2" bs=64k status=none; }

state_is() { [ "$(cat $sysfs/state)" = "$1" ]; }
in_charge() { state_is active && [ "$(policy)" = "$1" ]; }
# Nothing is loaded, whatever was: a record of an ejection may stay.
unloaded() { ! state_is active && ! state_is idle; }
merged_is() { [ "$(cat $sysfs/pages_sharing)" = "$1" ]; }
knob() { cat $sysfs/"$1"; }
# A whole round has merged nothing new.
settled() { ksmx status --json | jq -e '.progress.quiet > 0' >/dev/null; }

# No program's exit status, but what it is for: to go on from scratch.
reset()
{
	ksmx unload --unmerge >/dev/null 2>&1
	echo 1 >$sysfs/run
	wait_for unloaded
}

# without DIRECTORY COMMAND...: with an empty folder there
# shellcheck disable=SC2317 # called through expect
without()
{
	local dir=$1
	shift

	unshare -m sh -c 'mount -t tmpfs none "$0" && exec "$@"' "$dir" "$@"
}

# What a kernel that knows nothing of ksm_ext and has no BTF would show
stock() { without /sys/kernel/mm "$BASH" -c \
	'mount -t tmpfs none /sys/kernel/btf && exec "$@"' stock "$@"; }

# narrow COMMAND...: all that it prints has room in 80 columns
narrow()
{
	same "what '$*' prints that is wider" \
		"$("$@" 2>&1 | awk 'length($0) > 79')" ''
}

nobody()
{
	setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all \
		--inh-caps -all "$@"
}

# ---- what it says ----

test_help_agrees()
{
	local help name option arg long man completed

	help=$(ksmx help --json)
	man=$(MANWIDTH=1000 man -l "$manuals/ksmx.8" | col -bx)
	completed=$(ksmx --complete '')
	same "completion of commands" "$completed" \
		"$(jq -r '.commands[].name' <<<"$help")"
	for name in $completed; do
		ksmx help | grep -q "^  $name " || wrong "$name is not in help"
		grep -qE "^ {7}$name( |$)" <<<"$man" ||
			wrong "$name is not in the manual"
		expect 0 "^Usage: ksmx $name " ksmx "$name" --help
		expect 0 "^Usage: ksmx $name " ksmx help "$name"
		long=$(jq -r --arg name "$name" '(.options +
			(.commands[] | select(.name == $name) | .options))[] |
			"--" + .long' <<<"$help" | sort)
		same "options in $name --help" "$long" \
			"$(ksmx "$name" --help | sed -n 's/^  [ -].[ ,] \(--[a-z-]*\).*/\1/p' |
				grep -vxE -- '--(help|usage|version)' | sort)"
		same "completion of $name --" "$(ksmx --complete "$name" -- |
			grep -vx -- --help | sort)" "$long"
		for option in $long; do
			grep -q -- "$option" <<<"$man" ||
				wrong "$option is not in the manual"
			case $option in
			--memory) arg==1M ;;
			--top) arg==1 ;;
			--set|--output) arg==x ;;
			*) arg= ;;
			esac
			expect 0 '^Usage:' ksmx "$name" "$option$arg" --help
		done
	done
	# and nothing else is in the manual
	same "options of the manual" "$(grep -oE '^ *-., --[a-z-]+' <<<"$man" |
		grep -o -- '--.*' | sort -u)" \
		"$(jq -r '(.options + [.commands[].options[]])[] | "--" + .long' \
			<<<"$help" | sort -u)"
}

test_docs_agree()
{
	local names word

	names=$(ksmx help --json | jq -r '.commands[].name')
	for word in $(cat "$clone"/README.md "$clone"/docs/*.md |
		      grep -oE '\bksmx (--json |-v )?[a-z]+' |
		      awk '{ print $NF }' | sort -u); do
		grep -qx "$word" <<<"$names" ||
			wrong "the documentation knows 'ksmx $word'"
	done
}

test_shell_completion()
{
	local COMP_WORDS COMP_CWORD COMPREPLY

	. "$clone/loader/bash-completion"
	COMP_WORDS=(ksmx swap sam) COMP_CWORD=2
	_ksmx
	same "completion of swap sam" "${COMPREPLY[*]}" samefile
	COMP_WORDS=(ksmx '') COMP_CWORD=1
	_ksmx
	same "the first words" "${COMPREPLY[*]}" \
		"$(ksmx help --json | jq -r '[.commands[].name] | join(" ")')"
	COMP_WORDS=(ksmx set idle_ms = 5) COMP_CWORD=4
	_ksmx
	same "numbers" "${COMPREPLY[*]}" ''
}

test_manuals()
{
	local page out

	for page in "$manuals"/*; do
		out=$(man --warnings -l "$page" 2>&1 >/dev/null)
		same "warnings about $page" "$out" ''
	done
	for page in "$clone"/bpf/*.bpf.c; do
		page=${page##*/}
		man -l "$manuals/ksm_ext-policies.7" | col -bx |
			grep -qx "   ${page%.bpf.c}" ||
			wrong "$page is not in the manual"
	done
}

# usage PATTERN ARGUMENT...: refused in one line, or as an object of JSON, also
# where --json comes behind what is wrong
usage()
{
	local pattern=$1 out status
	shift

	expect 2 "^ksmx: .*$pattern" ksmx "$@"
	same "lines of ksmx $*" "$(ksmx "$@" 2>&1 | wc -l)" 1
	out=$(ksmx --json "$@" 2>/dev/null)
	status=$?
	same "status of ksmx --json $*" $status 2
	jq -e --arg pattern "$pattern" \
		'.status == 2 and (.error | test($pattern))' <<<"$out" \
		>/dev/null || wrong "ksmx --json $*: $out"
	[[ " $* " != *" -- "* && $* != *--set ]] || return
	same "ksmx $* --json" "$(ksmx "$@" --json 2>&1)" "$out"
}

test_usage()
{
	usage 'which command.: see ksmx --help'
	usage "unknown command 'frob': see ksmx --help" frob
	usage "unknown command 'frob': see ksmx help" help frob
	usage "unrecognized option '--frob': see ksmx status --help" \
		status --frob
	usage "unrecognized option '--frob': see ksmx --help" --frob
	usage "unrecognized option '--set=a=1'" unload --set=a=1
	usage "option '--set' requires an argument" load all --set
	usage "option '--all' doesn't allow an argument" estimate --all=1 .
	usage 'POLICY is missing: see ksmx load --help' load
	usage "one argument too many: 'b'" swap a b
	usage "interval '0'" top 0
	usage "interval 'nan'" top nan
	usage "count '-1'" top 1 -- -1
	usage "memory: '5'" estimate -m 5 .
	usage "memory: '99999999999G'" estimate -m 99999999999G .
	usage "top: '1x'" estimate --top 1x .
	usage 'No such file' estimate . /nowhere
	expect 0 '^ksmx [0-9]' ksmx --version
	same "help about one" "$(ksmx help swap --json | jq -r .name)" swap
	unloaded || wrong "something was loaded"
}

test_width()
{
	local name

	for name in $(ksmx --complete ''); do
		narrow ksmx help "$name"
	done
	narrow ksmx help
	narrow ksmx list
	narrow ksmx doctor
	narrow stock ksmx doctor
	narrow without /sys/fs/bpf ksmx doctor
	narrow nobody ksmx doctor
	ksmx load "$objects/ksmx_policy.bpf.o" >/dev/null
	ksmx set exit=-1 >/dev/null
	wait_for state_is ejected
	narrow ksmx doctor
	narrow ksmx status
}

# ---- policies as files ----

test_bad_objects()
{
	local before name

	expect 5 "no policy 'nosuch'" ksmx load nosuch
	expect 5 'cannot read /nowhere/a.bpf.o' ksmx load /nowhere/a.bpf.o
	expect 5 'is no BPF object' ksmx load /dev/null
	expect 5 'is no BPF object' ksmx load /
	expect 5 'is no BPF object' ksmx load "$clone/build/ksmx"
	echo nonsense >"$work/text.bpf.o"
	expect 5 'is no BPF object' ksmx load "$work/text.bpf.o"
	for name in 100 1000 10000 20000; do
		head -c $name "$clone/build/all.bpf.o" >"$work/cut.bpf.o"
		expect 5 'is no' ksmx load "$work/cut.bpf.o"
	done
	expect 5 'is no policy' ksmx load "$objects/ksmx_none.bpf.o"
	expect 5 'the verifier refused.*map_value_or_null' \
		ksmx load "$objects/ksmx_refused.bpf.o"
	expect 5 "has no member 'foresight'" \
		ksmx load "$objects/ksmx_newer.bpf.o"
	expect 5 "member 'name' .* 64 bytes.* of 32" \
		ksmx load "$objects/ksmx_resized.bpf.o"
	unloaded || wrong "something was loaded"
	[ -z "$(ls $pins 2>/dev/null)" ] || wrong "pins: $(ls -R $pins)"

	# A policy in charge stays so.
	ksmx load samefile >/dev/null
	before=$(ls $pins/maps)
	for name in none refused newer resized; do
		expect 5 '' ksmx swap "$objects/ksmx_$name.bpf.o"
		expect 0 '"error"' sh -c \
			"ksmx --json swap $objects/ksmx_$name.bpf.o | jq ."
		same policy "$(policy)" samefile
		same maps "$(ls $pins/maps)" "$before"
	done
	[ ! -e $pins/maps_new ] || wrong "new maps were left"
	expect 0 'swapped to ksmx_unused' \
		ksmx swap "$objects/ksmx_unused.bpf.o"
	same policy "$(policy)" ksmx_unused
}

test_load_swap_unload()
{
	expect 6 'nothing is loaded: ksmx load all' ksmx swap all
	expect 6 'nothing is loaded' ksmx unload
	expect 0 '^loaded samefile' ksmx load samefile
	expect 6 "'samefile' is loaded already (active): ksmx swap all" \
		ksmx load all
	expect 0 'samefile, active' ksmx status
	expect 0 '^\* samefile' ksmx list
	expect 0 '"policy":	"all"' ksmx swap all --json
	expect 0 '^all_ops$' ls $pins/maps
	expect 0 '^{"active":"all"}$' sh -c \
		'ksmx status --json | jq -c "{(.state): .policy}"'
	expect 0 '^true$' sh -c 'ksmx list --json |
		jq ".[] | select(.name == \"all\") | .loaded"'
	echo 0 >$sysfs/run
	expect 0 'run is 0' ksmx status
	expect 0 'swapped to samefile; idle until' ksmx swap samefile
	expect 0 '^unloaded samefile' ksmx unload
	same state "$(cat $sysfs/state)" none
	[ -z "$(ls $pins)" ] || wrong "pins are left: $(ls -R $pins)"
}

# Equal files: merged, still merged without a policy, and apart again.
test_unmerge()
{
	local run

	head -c 40960 /dev/urandom >"$work/a"
	copy "$work/a" "$work/b"
	sync
	ksmx load all --set idle_ms=10 >/dev/null
	wait_for merged_is 10
	expect 0 '^unloaded all' ksmx unload
	merged_is 10 || wrong "unload unmerged"
	expect 0 'own pages' ksmx unload --unmerge
	merged_is 0 || wrong "unload --unmerge did not unmerge"
	same run "$(cat $sysfs/run)" 1
	ksmx load all --set idle_ms=10 >/dev/null
	wait_for merged_is 10
	expect 0 '^true$' sh -c 'ksmx unload --unmerge --json | jq .unmerged'
	merged_is 0 || wrong "unload --unmerge did not unmerge"
	# A button that is pressed stays so.
	for run in 0 2; do
		ksmx load all --set kernel.run=1 --set idle_ms=10 >/dev/null
		wait_for merged_is 10
		ksmx set kernel.run=$run >/dev/null
		expect 0 'own pages' ksmx unload --unmerge
		merged_is 0 || wrong "unload --unmerge did not unmerge"
		same run "$(knob run)" $run
	done
	cmp -s "$work/a" "$work/b" || wrong "the files differ"
}

# ---- who shares with whom ----

# ranges FILE: as "first nr state reason other:page"
ranges()
{
	ksmx explain "$1" --json | jq -r '.ranges[] | [.first, .nr, .state,
		.reason // "", ((.with // [])[0] | if . == null then "" else
		(.path | split("/") | last) + ":\(.page)" end)] | join(" ")'
}

test_explain()
{
	local name

	head -c 81920 /dev/urandom >"$work/a"
	copy "$work/a" "$work/b"
	copy "$work/a" "$work/others"
	chmod go+w "$work/others"
	head -c 8192 /dev/urandom >"$work/alone"
	head -c 40960 /dev/zero >"$work/zeros"
	: >"$work/empty"
	sync
	ksmx load all --set idle_ms=10 >/dev/null
	wait_for merged_is 29
	wait_for settled
	# b changes three pages and a is cut out of memory behind: others know
	dd if=/dev/urandom of="$work/b" bs=4096 seek=5 count=3 conv=notrunc \
		status=none
	same "a" "$(ranges "$work/a" | sed 's/ *$//')" \
		$'0 5 shared  b:0\n5 3 shared\n8 12 shared  b:8'
	same "dirty pages" "$(ranges "$work/b" | sed -n '2s/ *$//p')" \
		'5 3 own dirty'
	sync "$work/b"
	same "others" "$(ranges "$work/others" | sed 's/ *$//')" \
		'0 20 own no_domain'
	same "alone" "$(ranges "$work/alone" | sed 's/ *$//')" \
		'0 2 own no_equal'
	same "zeros" "$(ranges "$work/zeros" | cut -d' ' -f1-3)" \
		'0 10 shared'
	sync
	dd if="$work/alone" iflag=nocache count=0 status=none
	same "not in memory" "$(ranges "$work/alone" | sed 's/ *$//')" \
		'0 2 not_cached not_cached'
	# One range, though not all of it is looked at at once
	truncate -s 200M "$work/sparse"
	same "a large file" "$(ranges "$work/sparse" | sed 's/ *$//')" \
		'0 51200 not_cached not_cached'
	dd if=/dev/urandom of="$work/sparse" bs=4096 seek=20000 count=1 \
		conv=notrunc status=none
	sync "$work/sparse"
	same "a large file" "$(ranges "$work/sparse" | sed 's/ *$//')" \
		"$(printf '%s\n' '0 20000 not_cached not_cached' \
			'20000 1 own no_equal' '20001 31199 not_cached not_cached')"
	rm "$work/sparse"
	expect 0 "shared by 2 pages.*" ksmx explain "$work/a" 0
	expect 0 "$work/b, page 0" ksmx explain "$work/a" 0
	expect 0 "5 - 5 .*shared with nobody" ksmx explain "$work/a" 0x5fff
	for name in a b others alone zeros; do
		narrow ksmx explain "$work/$name"
	done
	expect 0 '^0 pages' ksmx explain "$work/empty"
	expect 2 'behind the end' ksmx explain "$work/a" 81920
	expect 2 "offset '-1'" ksmx explain "$work/a" -- -1
	expect 2 "offset 'x'" ksmx explain "$work/a" x
	expect 2 'No such file' ksmx explain /nowhere
	expect 2 'no regular file' ksmx explain /
	expect 2 'ineligible' ksmx explain /proc/version
	expect 4 'be root' nobody ksmx explain /etc/passwd
}

# reason FILE: why its pages are not shared, if it is one reason
reason() { ksmx explain "$1" --json | jq -r '[.ranges[].reason] |
	unique | join(" ")'; }
reason_is() { [ "$(reason "$1")" = "$2" ]; }

test_explain_reasons()
{
	local name

	for name in a b others; do
		head -c 8192 /dev/urandom >"$work/$name"
	done
	chmod go+w "$work/others"
	sync
	same "without a policy" "$(reason "$work/a")" no_policy
	ksmx load all --set idle_ms=10 >/dev/null
	wait_for settled
	same "an equal page of its own" "$(reason "$work/a")" no_equal
	same "others may write" "$(reason "$work/others")" no_domain
	ksmx set kernel.run=0 >/dev/null
	same "stopped" "$(reason "$work/a")" stopped
	same "stopped, others may write" "$(reason "$work/others")" stopped
	narrow ksmx explain "$work/a"
	ksmx set kernel.run=1 >/dev/null
	ksmx swap dryrun --set idle_ms=10 >/dev/null
	same "a dry run" "$(reason "$work/a")" dry_run
	narrow ksmx explain "$work/a"
	# Nobody executes it
	ksmx swap exec --set idle_ms=10 >/dev/null
	wait_for settled
	same "not looked into" "$(reason "$work/a")" not_looked
	narrow ksmx explain "$work/a"
	# This one has no domains at all.
	ksmx swap "$objects/ksmx_policy.bpf.o" >/dev/null
	same "a policy without domains" "$(reason "$work/a")" no_domain
	narrow ksmx explain "$work/a"
	ksmx set fail=-1 >/dev/null
	wait_for reason_is "$work/a" no_policy
	state_is ejected || wrong "not ejected"
}

explains() { ksmx explain "$1" | grep -q "$2"; }

test_explain_ineligible()
{
	local fs

	mkdir "$work/ext2" "$work/tmpfs" "$work/erofs"
	truncate -s 4M "$work/disk"
	mkfs.ext2 -q "$work/disk"
	mount -o loop -t ext2 "$work/disk" "$work/ext2" || wrong "no ext2"
	mount -t tmpfs none "$work/tmpfs"
	ksmx load all --set idle_ms=10 >/dev/null
	for fs in ext2 tmpfs; do
		echo text >"$work/$fs/file"
		expect 2 "$fs/file: .*(ineligible)" \
			ksmx explain "$work/$fs/file"
		umount "$work/$fs"
	done

	mkdir "$work/tree"
	# One page is a folio alone in all three; dirty ones are not merged.
	head -c 4096 /dev/urandom >"$work/tree/file"
	mkfs.erofs "$work/image" "$work/tree" >/dev/null 2>&1
	sync
	mount -o loop -t erofs "$work/image" "$work/erofs" || wrong "no erofs"
	cat "$work/erofs/file" >/dev/null
	# With the file that it was made of, and with the image
	wait_for explains "$work/erofs/file" 'shared by 3 pages of files'
	umount "$work/erofs"
}

test_dump()
{
	head -c 40960 /dev/urandom >"$work/a"
	copy "$work/a" "$work/b"
	sync
	ksmx load "$objects/ksmx_policy.bpf.o" >/dev/null
	ksmx set exit=-9 >/dev/null
	wait_for state_is ejected
	wait_for grep -q 'last line' $sysfs/exit_dump
	expect 0 '^exit: self: it gave up with code -9: 0123.*wxyzx$' ksmx dump
	same "dump of the policy" "$(ksmx dump --json |
		jq -r 'select(.dump) | .dump')" $'first line\nlast line'
	ksmx swap all --set idle_ms=10 >/dev/null
	wait_for merged_is 10
	same "roots" "$(ksmx dump --json | jq -r 'select(.root) | .root' |
		sort | uniq -c | awk '{ print $1 }' | sort | uniq -c |
		xargs)" '10 2'
	same "files" "$(ksmx dump --json | jq -r 'select(.root) | .path' |
		sort | uniq -c | xargs)" "10 $work/a 10 $work/b"
	same "top files" "$(ksmx top 0.05 1 --json |
		jq -c '.top | sort_by(.path) | map([.path, .pages])')" \
		"[[\"$work/a\",10],[\"$work/b\",10]]"
	expect 4 'be root' nobody ksmx dump
}

# is_json COMMAND...: what it prints is one object or more, also for readers that
# are strict
is_json()
{
	"$@" | python3 -c 'import json, sys
text = sys.stdin.buffer.read().decode().strip()
while text:
    text = text[json.JSONDecoder().raw_decode(text)[1]:].lstrip()' ||
		wrong "not JSON: $*"
}

# Who names a file does not get to talk to root's terminal.
test_odd_names()
{
	local name=$'\xc3\xa4 \\\n\e[31m\xff\xc2\x9b' command
	local shown=$'\xc3\xa4'' \\134\\012\\033\[31m\\377\\302\\233'

	mkdir "$work/$name"
	head -c 40960 /dev/urandom >"$work/$name/a"
	copy "$work/$name/a" "$work/b"
	sync
	ksmx load all --set idle_ms=10 >/dev/null
	wait_for merged_is 10
	expect 0 "$work/$shown/a$" ksmx dump
	expect 0 "$work/$shown/a, page 0$" ksmx explain "$work/b"
	expect 0 "%  $work/$shown/a$" ksmx estimate "$work/b" "$work/$name"
	expect 2 "^ksmx: $work/$shown is no regular file$" \
		ksmx explain "$work/$name"
	expect 2 "^ksmx: x$shown: No such file" ksmx estimate "x$name"
	expect 2 "unknown command 'x\\\\033'" ksmx $'x\e'
	same "with whom" "$(printf %b "$(ksmx explain --json "$work/b" |
		jq -r '.ranges[0].with[0].path')")" "$work/$name/a"

	chmod 755 "$work"
	chmod 700 "$work/$name"
	expect 0 "^ksmx: $work/$shown: left out: Permission denied$" \
		nobody ksmx estimate --all "$work"
	is_json nobody ksmx --json estimate --all "$work"
	for command in dump 'top 0.05 1' "estimate --all $work" \
		       "explain $work/b"; do
		# shellcheck disable=SC2086 # words
		is_json ksmx --json $command
	done
	is_json ksmx --json explain "$work/$name/a"
	is_json ksmx --json explain "$work/$name"
	is_json ksmx --json "x$name"
}

paths() { ksmx dump --json | jq -r 'select(.root) | .path' | sort -u; }

# A path is one by which the file can be reached, if there is one: all of its
# file system is mounted, a folder or subvolume, nothing.
test_mounts()
{
	local dir top part device place mount

	dir=$(mktemp -d)
	top=$(stat -c %m "$work")
	part=${work#"$top"}/part
	device=$(findmnt -no MAJ:MIN --target "$work" | tail -n 1 | xargs)
	place="$dir/one two"
	mkdir "$place"
	if [ "${FS:-ext4}" = btrfs ]; then
		btrfs -q subvolume create "$work/part"
		mount=(-o "subvol=$part"
			"$(findmnt -nvo SOURCE --target "$work" | tail -n 1)")
	else
		mkdir "$work/part"
		mount=(--bind "$work/part")
	fi
	head -c 40960 /dev/urandom >"$work/part/a"
	copy "$work/part/a" "$work/b"
	sync
	ksmx load all --set idle_ms=10 >/dev/null
	wait_for merged_is 10
	same paths "$(export -f paths && unshare -m "$BASH" -c '
		mount "${@:3}" "$2" && paths
		umount -l "$1" && paths
		umount "$2" && paths' bash "$top" "$place" "${mount[@]}" 2>&1
		)" "$(printf '%s\n' "$work/b" "$work/part/a" \
			"(device $device)${work#"$top"}/b" "$place/a" \
			"(device $device)${work#"$top"}/b" \
			"(device $device)$part/a")"
	rm -r "$dir"
}

would_save() { [ "$(ksmx status --json | jq .report.would_save)" = "$1" ]; }

test_dry_run()
{
	head -c 40960 /dev/urandom >"$work/a"
	copy "$work/a" "$work/b"
	sync
	ksmx load dryrun --set idle_ms=10 >/dev/null
	wait_for would_save 10
	expect 0 '^report  *would_save  *10$' ksmx status
	expect 0 '^  *metadata  *[1-9][0-9]*$' ksmx status
	expect 0 '^dry run  *[1-9][0-9]* pairs .* would have been' ksmx status
	! ksmx status | grep '^saved' || wrong "a dry run saves something"
	same "dry_run" "$(ksmx status --json | jq .dry_run)" true
	expect 0 'report{what="would_save"} 10$' ksmx metrics
	merged_is 0 || wrong "something was merged"
	narrow ksmx status

	ksmx swap all --set idle_ms=10 >/dev/null
	wait_for merged_is 10
	expect 0 '^saved  *0.0 MiB' ksmx status
	same "dry_run, report" "$(ksmx status --json |
		jq -c '[.dry_run, has("report")]')" '[false,false]'
}

# ---- tunables ----

tunable() { ksmx set --json | jq ".$1"; }
# Those of the policy only
tunables()
{
	ksmx set --json |
		jq -c 'with_entries(select(.key | startswith("kernel.") | not))'
}

test_tunables()
{
	local object=$objects/ksmx_policy.bpf.o setting

	expect 6 'nothing is loaded' ksmx set
	expect 6 'nothing is loaded' ksmx set fail=1
	for setting in x=1 =1 fixed fixed= fixed=-1 fixed=4294967296 \
		       fixed=1x small=256 about=1 x.max_entries=1 \
		       table.max_entries=0 table.max_entries=4294967296 \
		       table.max_entries=-1 fail=1; do
		expect 2 '' ksmx load "$object" --set "$setting"
	done
	unloaded || wrong "something was loaded"
	expect 0 'loaded ksmx_policy' ksmx load "$object" --set fixed=0x10 \
		--set small=255 --set table.max_entries=20
	expect 0 '"fixed": 16' bpftool map dump pinned $pins/maps/ksmx_pol_rodata
	expect 0 'max_entries 20' bpftool map show pinned $pins/maps/table

	same tunables "$(tunables)" \
		'{"fail":0,"exit":0,"tiny":0,"yes":0,"large":0}'
	expect 0 '^large  *1099511627776$' ksmx set large=1099511627776 tiny=255
	same tiny "$(tunable tiny)" 255
	for setting in tiny=256 tiny=-1 yes=2 fail=2147483648 \
		       fail=-2147483649 large=18446744073709551616 large= \
		       large=x nosuch=1 =1 large; do
		expect 2 '' ksmx set tiny=1 "$setting"
		same "tiny after $setting" "$(tunable tiny)" 255
	done
	expect 2 'fixed can not change.*ksmx swap ksmx_policy --set fixed' \
		ksmx set fixed=1
	expect 2 'table.max_entries can not change' \
		ksmx set table.max_entries=30
	expect 0 '^fail  *5$' ksmx set fail=5
	state_is active || wrong "not active"

	# Another policy's tunables are others.
	expect 0 '' ksmx swap "$objects/ksmx_unused.bpf.o"
	expect 2 "no tunable 'tiny'" ksmx set tiny=1
	same tunables "$(tunables)" '{}'
	same "completion of set" "$(ksmx --complete set fa)" ''
	ksmx swap "$object" >/dev/null
	same "completion of set" "$(ksmx --complete set t)" 'tiny='
}

# Of the kernel: with a policy and without
test_knobs()
{
	local setting

	expect 0 '^kernel.max_cpu_percent  *20$' ksmx set \
		kernel.max_cpu_percent=20 kernel.thrash_pages=0x10
	same max_cpu_percent "$(knob max_cpu_percent)" 20
	same thrash_pages "$(knob thrash_pages)" 16
	same "completion of set" "$(ksmx --complete set kernel.max_c)" \
		kernel.max_cpu_percent=

	# All or none
	ksmx load "$objects/ksmx_policy.bpf.o" >/dev/null
	for setting in kernel.run=3 kernel.run=-1 kernel.run= kernel.run=x \
		       kernel.max_cpu_percent=0 kernel.max_cpu_percent=101 \
		       kernel.max_page_sharing=1 kernel.thrash_pages=4294967296 \
		       kernel.nosuch=1 kernel.=1 kernel.run tiny=256; do
		expect 2 '' ksmx set kernel.thrash_pages=5 tiny=7 "$setting"
		same "thrash_pages after $setting" "$(knob thrash_pages)" 16
		same "tiny after $setting" "$(tunable tiny)" 0
	done
	expect 2 "'101' is not a number from 1 to 100" \
		ksmx set kernel.max_cpu_percent=101
	expect 2 "the kernel has no 'kernel.nosuch'" ksmx set kernel.nosuch=1
	expect 0 '' ksmx set kernel.thrash_pages=1024 tiny=7 \
		kernel.max_cpu_percent=90
	same thrash_pages "$(knob thrash_pages)" 1024
	same max_cpu_percent "$(knob max_cpu_percent)" 90
	same tiny "$(tunable tiny)" 7
	expect 0 '' ksmx set kernel.run=0
	state_is idle || wrong "not idle"
	expect 0 '' ksmx set kernel.run=1
	state_is active || wrong "not active"
	ksmx unload >/dev/null
	expect 6 'nothing is loaded' ksmx set kernel.thrash_pages=5 tiny=7
	same thrash_pages "$(knob thrash_pages)" 1024
}

# With the policy that wants them
test_knobs_at_load()
{
	local object=$objects/ksmx_policy.bpf.o setting command pid
	local set=(--set kernel.max_cpu_percent=40 --set kernel.thrash_pages=5)

	for command in load swap; do
		for setting in kernel.max_cpu_percent=0 kernel.nosuch=1 \
			       fixed=-1 nosuch=1; do
			expect 2 '' ksmx $command "$object" "${set[@]}" \
				--set "$setting"
		done
		# Refused by the verifier, by the policy; a knob that fails
		expect 5 'the verifier refused' ksmx $command \
			"$objects/ksmx_refused.bpf.o" "${set[@]}"
		expect 1 'the kernel refused' ksmx $command "$object" \
			"${set[@]}" --set refuse=1
		expect 1 'cannot set kernel.thrash_pages to 5: Input/output' \
			strace -qq -o /dev/null -e trace=write \
			-e inject=write:error=EIO:when=2 \
			ksmx $command "$object" "${set[@]}"
		same "max_cpu_percent after $command" \
			"$(knob max_cpu_percent)" 90
		same "thrash_pages after $command" "$(knob thrash_pages)" 1024
		[ ! -e $pins/maps_new ] || wrong "new maps were left"
		[ $command = swap ] || unloaded || wrong "something was loaded"
		[ $command = load ] || in_charge samefile ||
			wrong "the policy has gone"
		ksmx load samefile >/dev/null 2>&1
	done

	# This one unmerges all, which the policy that goes on merges anew.
	head -c 40960 /dev/urandom >"$work/a"
	copy "$work/a" "$work/b"
	sync
	ksmx swap all --set idle_ms=10 >/dev/null
	wait_for merged_is 10
	expect 1 'the kernel refused' ksmx swap "$object" --set refuse=1 \
		--set kernel.strict=1
	same strict "$(knob strict)" 0
	wait_for merged_is 10

	expect 0 'swapped to ksmx_policy' ksmx swap "$object" "${set[@]}" \
		--set kernel.strict=1 --set fixed=3
	same max_cpu_percent "$(knob max_cpu_percent)" 40
	same thrash_pages "$(knob thrash_pages)" 5
	same strict "$(knob strict)" 1
	expect 0 '"fixed": 3' bpftool map dump pinned $pins/maps/ksmx_pol_rodata
	ksmx unload >/dev/null
	same "strict without a policy" "$(knob strict)" 1

	# As the service when it is killed: what it starts with holds again.
	set=(--set idle_ms=1234 --set kernel.max_cpu_percent=50)
	run_in_background ksmx run all "${set[@]}"
	wait_for in_charge all
	same idle_ms "$(tunable idle_ms)" 1234
	ksmx set idle_ms=7 kernel.max_cpu_percent=77 >/dev/null
	kill -KILL $pid
	wait $pid 2>/dev/null
	same max_cpu_percent "$(knob max_cpu_percent)" 77
	run_in_background ksmx run all "${set[@]}"
	wait_for grep -q swapped "$out"
	same idle_ms "$(tunable idle_ms)" 1234
	same max_cpu_percent "$(knob max_cpu_percent)" 50
	kill $pid
	ended 0 unloaded
	expect 0 '' ksmx set kernel.strict=0 kernel.max_cpu_percent=90 \
		kernel.thrash_pages=1024
}

budgets() { bpftool -j map dump pinned $pins/maps/budgets | jq -c \
	'[.[].formatted | [.key, .value.max_merged, .value.max_work]] | sort'; }

# Entries of other maps, by number or cgroup
test_entries()
{
	local group=/sys/fs/cgroup/ksmx-=1 id place

	expect 6 'nothing is loaded' ksmx set 'budgets[1].max_work=1'
	ksmx load cgroup --set budgets.max_entries=1 --set idle_ms=500 \
		>/dev/null
	mkdir $group
	id=$(stat -c %i $group)
	expect 0 "^budgets\[$group\].max_merged  *10000$" ksmx set \
		"budgets[$group].max_merged=10000" "budgets[$group].max_work=5"
	same budgets "$(budgets)" "[[$id,10000,5]]"
	same "as JSON" "$(ksmx set "budgets[$id].max_work=0x10" --json |
		jq ".[\"budgets[$id].max_work\"]")" 16
	same budgets "$(budgets)" "[[$id,10000,16]]"

	# None, if one of them is wrong, or has no room
	for place in 'budgets[/nowhere].max_work' 'budgets[/etc].max_work' \
		     "budgets[$group/cgroup.procs].max_work" \
		     'budgets[].max_work' 'budgets[-1].max_work' \
		     'budgets[1].nosuch' 'budgets[1]' 'budgets[1' \
		     '[1].max_work' 'nosuch[1].max_work' 'candidates[1].file' \
		     'tunables[4294967296].idle_ms'; do
		expect 2 '' ksmx set kernel.thrash_pages=5 idle_ms=77 \
			"budgets[$id].max_work=1" "$place=1"
	done
	expect 2 'is no cgroup: a number, or' \
		ksmx set 'budgets[/etc].max_work=1'
	expect 1 "cannot change the map 'budgets'" ksmx set \
		kernel.thrash_pages=5 idle_ms=77 "budgets[$id].max_work=1" \
		"budgets[1].max_work=1"
	same budgets "$(budgets)" "[[$id,10000,16]]"
	same idle_ms "$(tunable idle_ms)" 500
	same thrash_pages "$(knob thrash_pages)" 1024

	# From the start, or not at all
	expect 0 'swapped to cgroup' ksmx swap cgroup \
		--set "budgets[$group].max_work=7" \
		--set "budgets[1].max_merged=9" --set "budgets[$id].max_merged=8"
	same budgets "$(budgets)" "[[1,9,0],[$id,8,7]]"
	expect 2 "no map 'nosuch'" ksmx swap cgroup --set 'nosuch[1].max_work=1'
	expect 2 'as in --set idle_ms=9$' ksmx swap cgroup \
		--set 'tunables[0].idle_ms=9'
	expect 2 "have no 'nosuch'" ksmx swap cgroup --set 'budgets[1].nosuch=1'
	expect 1 "cannot change the map 'budgets'" ksmx swap cgroup \
		--set budgets.max_entries=1 --set 'budgets[1].max_work=1' \
		--set 'budgets[2].max_work=1'
	same budgets "$(budgets)" "[[1,9,0],[$id,8,7]]"
	rmdir $group
}

# ---- ejection, service ----

test_ejected()
{
	ksmx load "$objects/ksmx_policy.bpf.o" >/dev/null
	ksmx set fail=-5 >/dev/null
	wait_for state_is ejected
	expect 7 'because .*scan returned -5' ksmx status
	expect 7 '"state":	"ejected"' ksmx status --json
	expect 0 'state.*was ejected' ksmx doctor
	expect 0 '\(swapped to\|loaded\) all' ksmx swap all
	same policy "$(policy)" all
	state_is active || wrong "not active"
	expect 0 '' ksmx status
}

# run_in_background COMMAND...: in $out, its process in $pid
run_in_background()
{
	out=$work/out
	"$@" >"$out" 2>&1 &
	pid=$!
}

# ended STATUS PATTERN: the process of run_in_background does so
ended()
{
	local status

	wait $pid
	status=$?
	if [ $status != "$1" ] || ! grep -q -e "$2" "$out"; then
		wrong "run: status $status, wanted $1 and '$2': $(cat "$out")"
	fi
}

test_run()
{
	local signal object=$objects/ksmx_policy.bpf.o

	for signal in TERM INT; do
		# Bash lets what is in the background ignore SIGINT.
		run_in_background env --default-signal=INT ksmx run all
		wait_for state_is active
		same policy "$(policy)" all
		kill -$signal $pid
		ended 0 'all: unloaded'
		unloaded || wrong "run left its policy"
		[ -z "$(ls $pins)" ] || wrong "pins: $(ls -R $pins)"
	done

	# What was loaded is taken over; others may swap, and unload.
	ksmx load samefile >/dev/null
	run_in_background ksmx run all
	wait_for in_charge all
	expect 0 'swapped to samefile' ksmx swap samefile
	state_is active || wrong "not active"
	expect 0 'unloaded samefile' ksmx unload
	ended 0 'unloaded by somebody else'

	# Killed, its policy stays, and the next run takes over.
	run_in_background ksmx run all
	wait_for state_is active
	kill -KILL $pid
	wait $pid 2>/dev/null
	state_is active || wrong "the policy went with its loader"
	run_in_background ksmx run "$object"
	wait_for in_charge ksmx_policy
	ksmx set fail=-7 >/dev/null
	ended 7 'ksmx_policy was ejected: error: scan returned -7'
	unloaded || wrong "the ejected policy was left"
	[ -z "$(ls $pins)" ] || wrong "pins: $(ls -R $pins)"

	# The whole record, and what the policy had to say
	run_in_background ksmx run "$object"
	wait_for in_charge ksmx_policy
	ksmx set exit=-9 >/dev/null
	ended 7 'was ejected: self: it gave up with code -9: 0123.*wxyzx$'
	same dump "$(sed -n '/^dump:/,$p' "$out")" \
		$'dump: first line\nlast line'
	run_in_background ksmx --json run "$object"
	wait_for in_charge ksmx_policy
	ksmx set exit=-9 >/dev/null
	ended 7 '"end":	"ejected"'
	jq -es '.[-1] | .dump == "first line\nlast line" and
		(.exit | endswith("wxyzx"))' "$out" >/dev/null ||
		wrong "the record is not complete: $(cat "$out")"
	expect 5 "no policy 'nosuch'" ksmx run nosuch
}

# Without root, just with what it takes to load: nobody tells why it ended.
test_run_unprivileged()
{
	local caps=-all,+bpf,+perfmon object=$objects/ksmx_policy.bpf.o
	local loader=(setpriv --reuid 65534 --regid 65534 --clear-groups
		--inh-caps "$caps" --ambient-caps "$caps" ksmx)

	[ ! -e $pins ] || rmdir $pins
	chmod 1777 /sys/fs/bpf
	: >"$work/out"
	chmod 755 "$work"
	run_in_background "${loader[@]}" run "$object"
	wait_for in_charge ksmx_policy
	ksmx unload >/dev/null
	ended 0 'ksmx_policy: unloaded by somebody else'
	run_in_background "${loader[@]}" run "$object"
	wait_for in_charge ksmx_policy
	ksmx set fail=-7 >/dev/null
	ended 7 'ksmx_policy was ejected: only root may read why'
	rmdir $pins
}

# What systemd is told: ready when a policy is in charge, and stopping.
test_notify()
{
	local socket=$work/notify

	coproc listener { python3 -u - "$socket" <<-'END'
		import socket, sys
		s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
		s.bind(sys.argv[1])
		print("bound")
		while True:
		    text = s.recv(4096).decode()
		    print(text.replace("\n", " "))
		    if "STOPPING" in text:
		        break
	END
	}
	local from=${listener[0]}
	local process=$listener_PID line
	read -r line <&"$from"
	run_in_background env NOTIFY_SOCKET="$socket" ksmx run all
	read -r line <&"$from"
	same "first message" "$line" 'READY=1 STATUS=all is active'
	same policy "$(policy)" all
	kill $pid
	while read -r line <&"$from" && [ "$line" != STOPPING=1 ]; do
		:
	done
	same "last message" "$line" STOPPING=1
	ended 0 unloaded
	wait "$process"
}

# ---- what is missing ----

test_no_privilege()
{
	local command

	for command in 'load all' 'swap all' unload set 'run all'; do
		# shellcheck disable=SC2086 # words
		expect 4 'run as root\|be root' nobody ksmx $command
	done
	expect 4 'root only' nobody ksmx top
	expect 0 'root only' nobody ksmx status
	expect 0 'EOF' nobody ksmx metrics
	expect 4 'missing  privileges' nobody ksmx doctor
	unloaded || wrong "something was loaded"
	expect 4 'cannot write' nobody ksmx metrics -o /root/x
}

test_missing()
{
	local command

	for command in 'load all' 'swap all' unload 'run all' set; do
		# shellcheck disable=SC2086 # words
		{
			expect 3 'no bpf file system: mount' \
				without /sys/fs/bpf ksmx $command
			expect 3 'no ksm_ext in this kernel' \
				without /sys/kernel/mm ksmx $command
		}
	done
	expect 3 'no BTF' without /sys/kernel/btf ksmx load all
	for command in status top metrics; do
		expect 3 'no ksm_ext' without /sys/kernel/mm ksmx $command
	done
	expect 3 'missing  bpffs' without /sys/fs/bpf ksmx doctor
	expect 3 'missing  BTF' without /sys/kernel/btf ksmx doctor
	expect 3 'missing  kernel' without /sys/kernel/mm ksmx doctor
	expect 0 'ok  *BTF' ksmx doctor
	expect 0 '^0$' sh -c \
		'ksmx doctor --json | jq "map(select(.grade == \"missing\")) | length"'
	unloaded || wrong "something was loaded"
}

test_stock_kernel()
{
	local tree=$work/tree

	same "policies" "$(stock ksmx list)" "$(ksmx list)"
	expect 0 '^  samefile ' stock ksmx list
	expect 3 'missing  kernel  *[^ ]* lacks ksm_ext' stock ksmx doctor
	expect 3 'missing  BTF  *none' stock ksmx doctor
	expect 3 'no ksm_ext in this kernel' stock ksmx load all
	mkdir "$tree"
	head -c 40960 /dev/urandom >"$tree/a"
	copy "$tree/a" "$tree/b"
	same "saved" "$(stock ksmx estimate --json "$tree" |
		jq '.saved_bytes / 4096')" 10
	# With a progress bar, on a terminal only
	TERM=xterm stock script -qfec "ksmx estimate $tree" "$work/screen" \
		</dev/null >/dev/null 2>&1 || wrong "estimate: status $?"
	grep -qaE '\[#* *\] +[0-9]+ %  [0-9]+ files' "$work/screen" ||
		wrong "no bar: $(cat -v "$work/screen")"
	TERM=xterm stock script -qfec "ksmx estimate --all $tree" \
		"$work/screen" </dev/null >/dev/null 2>&1
	grep -qa 'files, [0-9]* MiB in these files' "$work/screen" ||
		wrong "no bar with --all: $(cat -v "$work/screen")"
	! stock ksmx estimate "$tree" 2>&1 | grep '^.\?\[' ||
		wrong "a bar where there is no terminal"
}

# ---- figures ----

test_metrics()
{
	local text file folder name

	ksmx load all >/dev/null
	text=$work/ksm_ext.prom
	expect 0 '' ksmx metrics -o "$text"
	same mode "$(stat -c %a "$text")" 644
	chown 1:2 "$text"
	chmod 640 "$text"
	expect 0 '' ksmx metrics -o "$text"
	same "owner and mode" "$(stat -c '%u %g %a' "$text")" '1 2 640'
	expect 2 'writes no JSON' ksmx metrics --json -o "$text"
	expect 2 '"status":	2' ksmx metrics -o "$text" --json
	same "last line" "$(tail -n 1 "$text")" '# EOF'
	# The reference parser, with all it has to say about the format
	python3 - "$text" >"$work/samples" <<-'END' || wrong "not OpenMetrics"
		import sys
		from prometheus_client.openmetrics import parser
		text = open(sys.argv[1]).read()
		for family in parser.text_string_to_metric_families(text):
		    assert family.documentation, family
		    for sample in family.samples:
		        print(sample.name, sample.labels.get("what", ""))
	END
	# and that of the older format, which node_exporter reads
	python3 -c 'import sys
from prometheus_client.parser import text_fd_to_metric_families as parse
list(parse(open(sys.argv[1])))' "$text" || wrong "not the Prometheus format"

	for file in $sysfs/*; do
		name=${file##*/}
		[ -f "$file" ] || continue
		[[ $(cat "$file") =~ ^-?[0-9]+$ ]] || continue
		grep -qE "^ksm_ext_$name(_total|_bytes)? " "$work/samples" ||
			wrong "$name is missing"
	done
	for file in $sysfs/*/*; do
		name=${file##*/} folder=${file%/*}
		grep -qx "ksm_ext_${folder##*/}_total $name" "$work/samples" ||
			wrong "${folder##*/}/$name is missing"
	done
	# Numbers that only grow, and what all of them mean
	for name in events_lost slices merge break; do
		grep -qx "# TYPE ksm_ext_$name counter" "$text" ||
			wrong "$name is no counter"
	done
	! grep "See the kernel's" "$text" || wrong "something has no meaning"
	expect 0 'state="active"} 1' cat "$text"
	expect 0 'policy{policy="all"} 1' cat "$text"

	# A disk that is full leaves the old file, and nothing else.
	cp "$text" "$work/before"
	mkdir "$work/small"
	mount -t tmpfs -o size=4k none "$work/small"
	echo old >"$work/small/ksm_ext.prom"
	expect 1 'No space left' ksmx metrics -o "$work/small/ksm_ext.prom"
	same "what is left" "$(cat "$work"/small/*)" old
	umount "$work/small"
	expect 1 'cannot write' strace -qq -o /dev/null -e trace=rename \
		-e inject=rename:error=EIO ksmx metrics -o "$text"
	expect 1 'cannot write' ksmx metrics -o "$work"
	expect 1 'cannot write' ksmx metrics -o /nowhere/x
	expect 1 'cannot write the output' sh -c 'ksmx metrics >/dev/full'
	cmp -s "$text" "$work/before" || wrong "the old file was changed"
	same "files" "$(cd "$work" && echo ksm_ext.prom*)" ksm_ext.prom
}

# The last line is drawn again only where the size has changed.
drawn_twice() { [ "$(grep -oa 'q quits' "$work/screen" | wc -l)" -ge 2 ]; }

test_top()
{
	local n deep

	# With a path that is wider than the screen
	deep=$work/$(printf 'long%.0s' {1..25})
	mkdir "$deep"
	head -c 40960 /dev/urandom >"$deep/needle"
	copy "$deep/needle" "$deep/other"
	sync
	ksmx load all --set idle_ms=10 >/dev/null
	wait_for merged_is 10
	same lines "$(ksmx top 0.05 3 | grep -c 'all active$')" 3
	same objects "$(ksmx top 0.05 2 --json | jq -c .policy | xargs)" \
		'all all'
	expect 0 '^0$' sh -c 'ksmx top 0.05 1 --json | jq .rates.broken'

	# On a terminal: it draws, follows its size, and q leaves.
	mkfifo "$work/keys"
	: >"$work/screen"
	TERM=xterm script -qfec 'stty rows 24 cols 80; ksmx top 0.1' \
		"$work/screen" <"$work/keys" >/dev/null 2>&1 &
	pid=$!
	exec 9>"$work/keys"
	wait_for grep -qa 'q quits' "$work/screen"
	wait_for grep -qaE '10  \.\.\.(long)*/needle' "$work/screen"
	n=$(pgrep -f '^ksmx top' | head -n 1)
	stty rows 10 cols 40 <"/proc/$n/fd/0"
	wait_for drawn_twice
	[ -e "/proc/$n" ] || wrong "top did not survive a change of size"
	printf q >&9
	wait $pid || wrong "top on a terminal: status $?"
	exec 9>&-
	grep -qa 'policy   all, active' "$work/screen" || wrong "nothing drawn"
}

# How much an estimate says can be saved, in pages
estimate() { ksmx estimate --json "$@" | jq -r '.saved_bytes / 4096'; }

# cached FILE PAGES: so many are in memory
cached()
{
	same "pages of $1 in memory" \
		"$(ksmx estimate --json "$1" | jq .pages)" "$2"
}

test_estimate()
{
	local tree=$work/tree status

	mkdir "$tree"
	head -c 200000 /dev/urandom >"$tree/a"		# 49 pages
	copy "$tree/a" "$tree/b"
	copy "$tree/a" "$tree/others"
	chmod g+w "$tree/others"			# shares with none
	copy "$tree/a" "$tree/private"
	chmod 600 "$tree/private"			# another domain
	ln "$tree/a" "$tree/name"			# no file of its own
	head -c 8192 /dev/zero >"$tree/zeros"		# equal to itself
	ln -s /usr "$tree/link"
	mkfifo "$tree/fifo"
	: >"$tree/empty"
	sync
	status=$(ksmx estimate --json "$tree")
	same "what is found" "$(jq -c '[.files, .pages, .distinct,
		.writable_by_others_pages, .other_names, .unreadable]' \
		<<<"$status")" "[5,198,148,49,1,0]"
	same "first file" "$(jq -r '.top[0].repeated_bytes / 4096' \
		<<<"$status")" 49

	# Now only what is in memory counts: nothing of b
	dd if="$tree/b" iflag=nocache count=0 2>/dev/null
	same "saved, partly in memory" "$(estimate "$tree")" 1
	same "saved, everything" "$(estimate --all "$tree")" 50
	# What was not in memory is not afterwards
	same "saved, partly in memory" "$(estimate "$tree")" 1
	# nor is what reading ahead would have brought; what was there stays
	head -c 5M /dev/urandom >"$tree/large"
	sync
	dd if="$tree/large" iflag=nocache count=0 2>/dev/null
	cached "$tree/large" 0
	ksmx estimate --all "$tree/large" >/dev/null 2>&1
	cached "$tree/large" 0
	# One page, at random, so that nothing is read ahead here
	python3 -c 'import mmap, sys
file = open(sys.argv[1])
map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
map.madvise(mmap.MADV_RANDOM)
map[700 * 4096]' "$tree/large"
	cached "$tree/large" 1
	ksmx estimate --all "$tree/large" >/dev/null 2>&1
	cached "$tree/large" 1
	rm "$tree/large"

	# The kernel agrees: the policy all finds just that.
	cat "$tree/b" >/dev/null
	same "saved" "$(estimate "$tree")" 50
	ksmx load all --set idle_ms=10 >/dev/null
	wait_for merged_is 50

	expect 0 'share none *0.2 MiB' ksmx estimate "$tree"
	expect 0 'compare the bytes' ksmx estimate "$tree"
	expect 0 '\b0 MiB\|0.0 MiB' ksmx estimate /proc/sys
	expect 0 'left out.*other file systems' ksmx estimate "$clone/bpf"
	expect 0 'MiB in these files' ksmx estimate -a --any-fs "$clone/bpf"
}

test_estimate_unreadable()
{
	local tree=$work/tree

	mkdir "$tree"
	head -c 8192 /dev/urandom >"$tree/mine"
	copy "$tree/mine" "$tree/same"
	copy "$tree/mine" "$tree/secret"
	mkdir "$tree/closed"
	chmod 700 "$tree/closed"
	chmod 600 "$tree/secret"
	chmod 755 "$work" "$tree"
	expect 0 'closed: left out: Permission denied' \
		nobody ksmx estimate --all "$tree"
	expect 0 'secret: left out: Permission denied' \
		nobody ksmx estimate --all "$tree"
	same "what nobody sees" "$(nobody ksmx estimate --all --json "$tree" |
		jq -c '[.files, .distinct, .unreadable]')" '[2,2,2]'
	# Whether others' files are in memory is not for everybody.
	expect 0 'only its owner' nobody ksmx estimate "$tree"
	# Reading fails in the middle.
	expect 0 'left out: Input/output error' strace -qq -o /dev/null \
		-e trace=preadv2 -e inject=preadv2:error=EIO:when=1 \
		ksmx estimate --all "$tree"
}

# More contents than fit: an estimate, within five deviations
test_estimate_sampled()
{
	local tree=$work/tree

	mkdir "$tree"
	# 40960 pages, every one twice
	openssl enc -aes-128-ctr -nosalt -k x -in /dev/zero 2>/dev/null |
		head -c 160M >"$tree/a"
	copy "$tree/a" "$tree/b"
	ksmx estimate --json --all --memory 1M "$tree" >"$work/report"
	jq -e '.sampled_one_in > 1 and .deviation_pages > 0 and
		(.saved_bytes / 4096 - 40960 | fabs) < 5 * .deviation_pages' \
		"$work/report" >/dev/null || wrong "$(cat "$work/report")"
	same "all of it" "$(estimate --all "$tree")" 40960
	# The limit is one: twice that is enough for everything.
	(ulimit -v 60000 && ksmx estimate --all --memory 1M "$tree") \
		>"$work/report" 2>&1 || wrong "$(cat "$work/report")"
}

# ---- killed at every step ----

# Every step that changes something is one of these.
steps=bpf,flock,mkdir,unlink,unlinkat,rename,renameat2,rmdir,write

# killed_at CALL N COMMAND...: at its Nth call of this kind, and it is done
killed_at()
{
	local call=$1 n=$2 status
	shift 2

	# The shell, too, has something to say about who is killed.
	{
		strace -qq -o /dev/null -e trace=$call \
			-e inject=$call:signal=KILL:when=$n "$@" \
			>"$work/out" 2>&1
	} 2>/dev/null
	status=$?
	[ $status = 137 ] || wrong "$*: not killed at $call $n, status $status"
}

# killed_everywhere PREPARE VALID COMMAND...: is run once to see what steps it
# takes, and then killed at these; after each, "none" or the name of the policy
# in charge must be one of VALID, and all commands work.  It takes
# KSM_EXT_STRIDE=1 to stop at each of the steps.
killed_everywhere()
{
	local prepare=$1 valid=$2 stride=${KSM_EXT_STRIDE:-10}
	local places i call n now what
	shift 2

	# Slow, and the same everywhere
	if [ "${FS:-ext4}" != ext4 ] || [ "${CONFIG:-default}" != default ]; then
		skip="looked at with FS=ext4 CONFIG=default"
		return
	fi

	$prepare >/dev/null
	strace -qq -o "$work/trace" -e trace=$steps "$@" >"$work/out" 2>&1 ||
		wrong "$*: status $?: $(cat "$work/out")"
	ksmx unload >/dev/null 2>&1
	# As strace counts: the first bpf, the second, ..., the first write
	mapfile -t places < <(sed -n 's/^\([a-z0-9]*\)(.*/\1/p' "$work/trace" |
		awk '{ print $1, ++n[$1] }')
	[ ${#places[@]} -gt 5 ] || wrong "$*: ${#places[@]} steps"

	for ((i = RANDOM % stride; i < ${#places[@]}; i += stride)); do
		read -r call n <<<"${places[i]}"
		what="$* killed at $call $n"
		$prepare >/dev/null
		killed_at "$call" "$n" "$@"
		now=$(policy)
		unloaded && now=
		[[ " $valid " == *" ${now:-none} "* ]] ||
			wrong "$what: ${now:-none} is in charge"
		# The maps that ksmx finds are those of the policy in charge.
		case $now in
		ksmx_policy)
			same "$what: tunables" "$(tunable tiny)" 0 ;;
		all|samefile)
			ksmx status --json | jq -e .progress >/dev/null ||
				wrong "$what: no progress" ;;
		'')
			expect 6 '' ksmx set ;;
		esac
		if [ -n "$now" ]; then
			expect 0 'swapped to all$' ksmx swap all
		else
			expect 0 'loaded all$' ksmx load all
		fi
		same "$what: folders" "$(ls $pins | xargs)" 'link maps'
		expect 0 unloaded ksmx unload
		[ -z "$(ls $pins)" ] || wrong "$what: $(ls -R $pins)"
	done
	echo "# $*: killed at 1 in $stride of ${#places[@]} steps"
	ksmx unload >/dev/null 2>&1
}

nothing() { :; }
load_policy() { ksmx load "$objects/ksmx_policy.bpf.o"; }

test_load_killed()
{
	killed_everywhere nothing 'none ksmx_unused' \
		ksmx load "$objects/ksmx_unused.bpf.o"
}

test_swap_killed()
{
	killed_everywhere load_policy 'ksmx_policy ksmx_unused' \
		ksmx swap "$objects/ksmx_unused.bpf.o"
}

test_unload_killed()
{
	killed_everywhere load_policy 'ksmx_policy none' ksmx unload
}

# It presses the button, which must not stay so: killed before the second write
test_unmerge_killed()
{
	load_policy >/dev/null
	killed_at write 2 ksmx unload --unmerge
	same run "$(knob run)" 2
	expect 0 '^loaded all$' ksmx load all
	same run "$(knob run)" 1
	# Unless somebody wants it so
	killed_at write 2 ksmx unload --unmerge
	ksmx set kernel.run=0 >/dev/null
	expect 0 'loaded all; idle' ksmx load all
	ksmx set kernel.run=1 >/dev/null
	ksmx unload >/dev/null
	killed_everywhere load_policy 'ksmx_policy none' \
		ksmx unload --unmerge
}

# After an ejection, when the kernel has let go of the policy
eject_policy()
{
	load_policy
	ksmx set fail=-5
	wait_for ejected_for_good
}
ejected_for_good() { state_is ejected && ! ksmx set 2>/dev/null; }

test_swap_ejected_killed()
{
	killed_everywhere eject_policy 'none ksmx_unused' \
		ksmx swap "$objects/ksmx_unused.bpf.o"
}

# A signal that waits from the beginning has it end as soon as it can.
run_and_end=(env --block-signal=TERM
	sh -c 'kill -TERM $$; exec ksmx run "$0"' "$objects/ksmx_unused.bpf.o")

test_run_killed()
{
	local KSM_EXT_STRIDE=${KSM_EXT_STRIDE:-20}

	killed_everywhere nothing 'none ksmx_unused' "${run_and_end[@]}"
	killed_everywhere load_policy 'ksmx_policy none ksmx_unused' \
		"${run_and_end[@]}"
}

# Several at once: every one does all or nothing.
test_at_once()
{
	local i pids=()

	ksmx load all >/dev/null
	for i in 1 2 3 4; do
		for policy in samefile all; do
			ksmx swap $policy >/dev/null 2>>"$errors" &
			pids+=($!)
		done
	done
	for i in "${pids[@]}"; do
		wait "$i" || wrong "swap: status $?"
	done
	state_is active || wrong "not active"
	same folders "$(ls $pins | xargs)" 'link maps'
	expect 0 '_ops$' ls $pins/maps
	ls $pins/maps | grep -qx "$(policy | cut -c1-8)_ops" ||
		ls $pins/maps | grep -qx "$(policy)_ops" ||
		wrong "$(policy) has other maps: $(ls $pins/maps)"
}

# ---- all of them ----

mapfile -t tests < <(compgen -A function test_)
[ $# = 0 ] || tests=("${@/#/test_}")
echo "TAP version 13"
echo "1..${#tests[@]}"
n=0 failed=0
for test in "${tests[@]}"; do
	n=$((n + 1))
	: >"$errors"
	rm -rf "$work"
	mkdir -p "$work"
	reset
	skip=
	"$test"
	reset
	if [ -s "$errors" ]; then
		sed 's/^/# /' "$errors"
		printf 'not '
		failed=1
	fi
	echo "ok $n ${test#test_}${skip:+ # SKIP $skip}"
done
rm -rf "$work" "$errors"
exit $failed
