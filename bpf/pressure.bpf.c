// SPDX-License-Identifier: GPL-2.0
/*
 * pressure - merge only while memory is short, cold files first
 *
 * Does nothing but ask for the time of it while processes do not wait for
 * memory (PSI, "some avg10" below min_pressure).  Else it merges what is equal,
 * as the policy "all" does, beginning with files whose pages nobody has used
 * lately; those in more and more use follow round by round, as long as the
 * pressure lasts.
 *
 * For: machines that have memory enough most of the time, and should spend
 * nothing on merging then.  Cold pages are merged without disturbing anybody,
 * and would be the ones that reclaim takes next.
 *
 * Bad: where the shortage comes faster than it works: pages that reclaim took
 * meanwhile can not be merged any more.  Pressure is an average over ten
 * seconds, so it is late by some of them.  A container that is at its own limit
 * while the machine has plenty makes pressure, too.
 */
#include "vmlinux.h"

/* min_pressure: share of time that somebody waits for memory, in 1/100 % */
#define POLICY_TUNABLES(T) T(min_pressure, 100)
#define HAVE_WANTED
#define HAVE_ROUND_ENDED

#include "ksm_ext_match.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "merge only while memory is short, cold files first";

/* How many 16ths of a file may be in use. */
#define WARMEST	16
static __u32 warmth;

static __always_inline bool wanted(const struct ksm_ext_file_stat *st)
{
	__u64 pages = (st->size + 4095) / 4096;
	__u64 step = (pages + KSM_EXT_SAMPLES - 1) / KSM_EXT_SAMPLES;
	__u64 samples;

	if (!step)
		return false;
	samples = (pages + step - 1) / step;
	return st->active * WARMEST <= warmth * samples;
}

static __always_inline bool round_ended(const struct ksm_ext_progress *p)
{
	if (warmth == WARMEST)
		return false;
	warmth = warmth ? warmth * 2 : 2;
	return true;
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(pressure_scan, const struct ksm_ext_scan_ctx *slice)
{
	tunables_get();
	if (slice->pressure < tune.min_pressure) {
		warmth = 0;
		return tune.idle_ms;
	}
	return walk();
}

SEC(".struct_ops.link")
struct ksm_ext_ops pressure_ops = {
	.init = (void *)walk_init,
	.scan = (void *)pressure_scan,
	.domain = (void *)walk_domain,
	.broken = (void *)walk_broken,
	.name = "pressure",
};
