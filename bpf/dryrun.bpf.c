// SPDX-License-Identifier: GPL-2.0
/*
 * dryrun - what would the policy "all" save, and what would it cost?
 *
 * Decides as "all" does, with the same code, and has the kernel check and
 * compare every pair of pages (KSM_EXT_DRY_RUN), but nothing is merged.  The
 * only entry of its map "report", which "ksmx status" shows, tells what would
 * have come of it.
 *
 * For: finding out on a machine in use whether merging is worth it, before any
 * page is shared.  It costs what "all" costs to find equal pages, and no more
 * than a pinned page or two at a time.
 *
 * Bad: as an exact forecast.  What is merged would not be hashed and compared
 * again, here it is when its file changes; max_page_sharing is not looked at;
 * what merging would change (a warmer cache, other reclaim) does not happen.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>

#define HAVE_LOOKED
#define HAVE_ROUND_ENDED

#include "ksm_ext_match.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "what would all save and cost? merges nothing";

/**
 * struct report - what would have come of it
 * @would_save:	pages, as of the latest complete round
 * @would_break: pages that were written after they would have been merged, each
 *		a copy made in a write; since loaded
 * @metadata:	bytes of kernel memory that would describe the shared pages, at
 *		most
 * @hashed:	pages hashed since loaded
 * @compared:	pairs of pages found equal since loaded
 * @scan_ns:	time spent on finding out since loaded
 */
struct report {
	__u64 would_save;
	__u64 would_break;
	__u64 metadata;
	__u64 hashed;
	__u64 compared;
	__u64 scan_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct report);
} report SEC(".maps");

static __always_inline struct report *get_report(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&report, &zero);
}

/*
 * What equals nothing any more since it was written.  A write may go on while
 * its file is looked into: the time of the file is from before the look, or
 * does not change any more.  So pages that are lost just before that changes
 * count, and those just after.  The note is how many of the former there are.
 */
#define WRITTEN	(1ULL << 63)

static __always_inline void looked(void)
{
	struct report *r = get_report();
	__u64 lost = 0, earlier = at.before.note;

	if (!r)
		return;
	r->compared += at.merged;
	if (at.before.merged > at.merged)
		lost = at.before.merged - at.merged;

	if (at.known && at.before.mtime_ns != at.now.mtime_ns) {
		r->would_break += lost + (earlier & ~WRITTEN);
		at.now.note = WRITTEN;
	} else if (earlier & WRITTEN) {
		r->would_break += lost;
		at.now.note = lost ? WRITTEN : 0;
	} else {
		at.now.note = lost;
	}
}

static __always_inline bool round_ended(const struct ksm_ext_progress *p)
{
	struct report *r = get_report();

	if (!r)
		return false;
	r->would_save = round.sharing;
	r->hashed = p->total_hashed;
	/* At most a root, and the alias of who came first, for each. */
	r->metadata = round.sharing *
		      (2 * bpf_core_type_size(struct ksm_ext_alias) +
		       bpf_core_type_size(struct ksm_ext_root));
	return false;
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(dryrun_scan, const struct ksm_ext_scan_ctx *slice)
{
	__u64 begin = bpf_ktime_get_ns();
	struct report *r;
	s32 wait;

	wait = walk();
	r = get_report();
	if (r)
		r->scan_ns += bpf_ktime_get_ns() - begin;
	return wait;
}

SEC(".struct_ops.link")
struct ksm_ext_ops dryrun_ops = {
	.init = (void *)walk_init,
	.scan = (void *)dryrun_scan,
	.domain = (void *)walk_domain,
	.flags = KSM_EXT_EVENTS | KSM_EXT_DRY_RUN,
	.name = "dryrun",
};
