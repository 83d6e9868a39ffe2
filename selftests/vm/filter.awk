# SPDX-License-Identifier: GPL-2.0
#
# Takes out of a kernel's log what is not held against it: data races that
# ksm_ext has no part in, and what ext4 loses count of, with or without ksm_ext,
# when allocations fail (see twin.c).  To be run with ours.awk; SPLAT is what
# nothing hides.

/twin: allocations fail from here/ { faults = 1 }
/twin: allocations fail no more/ { faults = 0 }
faults && /ext4_mb_release_inode_pa:.* free [0-9]+, pa_free [0-9]+/ { next }

/BUG: KCSAN: / {
	race = 1
	involved = 0
	# A clock that any context may read, and that copes with being set
	excused = /data-race in ktime_get_mono_fast_ns/
	report = $0 "\n"
	next
}
!race { print; next }
/==========/ {
	if (involved && !excused)
		printf "%s", report
	race = 0
	next
}
{
	report = report $0 "\n"
	if ($0 ~ ENVIRON["SPLAT"]) {
		involved = 1
		excused = 0
	}
}
# What an interrupt does is no doing of what it interrupts.
!/\+0x/ { interrupt = 0 }
/ asm_(sysvec|common_interrupt)/ { interrupt = 1 }
!interrupt && ours($0) { involved = 1 }
END {
	if (race)
		printf "%s", report
}
