// SPDX-License-Identifier: GPL-2.0
/*
 * adaptive - merge what is identical, and learn where it does not last
 *
 * Works as the policy "all", but is told of every page that is written after
 * it was merged.  The 256 KiB around such a page are left alone for cool_ms,
 * and twice as long each time that they are written soon after they were
 * merged again, up to max_cool_ms.  In quiet times that wait halves as fast as
 * it grew.  A file with max_breaks such pages of late, or one that keeps
 * changing and gains nothing, is left alone as a whole in the same way: its
 * pages are not even hashed.
 *
 * For: machines where some files are written over and over and others rest:
 * databases, logs and build trees beside containers.
 *
 * Bad: where files are written once and then rest: they are merged later than
 * by "all", by up to cool_ms.  Where nothing is written it is "all" with two
 * more lookups for each 256 KiB.  What it knows is in the map "heats", one
 * entry for each such range or file; above its max_entries it forgets those
 * that were quiet for longest.
 */
#include "vmlinux.h"

/*
 * cool_ms:	how long a place is left alone at first
 * max_cool_ms:	and at most
 * max_breaks:	pages written after they were merged that make a whole file be
 *		left alone; a quarter of them is forgotten every cool_ms
 */
#define POLICY_TUNABLES(T)	\
	T(cool_ms, 10000)	\
	T(max_cool_ms, 600000)	\
	T(max_breaks, 64)

#define BATCH	64
#define HAVE_WANTED
#define HAVE_LOOKED
#define HAVE_BATCH_WANTED

#include "ksm_ext_match.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "as all, but leaves alone what is written again and again";

#define WHOLE_FILE	(~0ULL)
/* More at a time make the whole file be left alone, unless told otherwise. */
#define MAX_RANGES	1024
#define NS_PER_MS	1000000ULL

/* A range of BATCH pages of a file, or WHOLE_FILE. */
struct place {
	__u64 file;
	__u64 range;
};

struct heat {
	__u64 until_ns;		/* leave the place alone until then */
	__u64 wait_ms;		/* how long the latest wait was */
	__u64 breaks;		/* of a whole file: pages broken of late */
	__u64 breaks_ns;	/* when breaks was last brought up to date */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct place);
	__type(value, struct heat);
} heats SEC(".maps");

static __always_inline struct heat *heat_of(__u64 file, __u64 range)
{
	struct place place = { .file = file, .range = range };

	return bpf_map_lookup_elem(&heats, &place);
}

static __noinline struct heat *make_heat(__u64 file, __u64 range)
{
	struct place place = { .file = file, .range = range };
	struct heat none = {};

	bpf_map_update_elem(&heats, &place, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&heats, &place);
}

static __always_inline bool is_hot(__u64 file, __u64 range)
{
	struct heat *h = heat_of(file, range);

	return h && bpf_ktime_get_ns() < h->until_ns;
}

/* The place was written at that time, in vain merged before. */
static __always_inline void heat_up(struct heat *h, __u64 now)
{
	__u64 quiet;
	int i;

	/* Part of what made it hot: its pages are written one by one. */
	if (now < h->until_ns)
		goto out;

	quiet = (now - h->until_ns) / NS_PER_MS;
	bpf_for(i, 0, 32) {
		if (h->wait_ms < tune.cool_ms || quiet < h->wait_ms)
			break;
		quiet -= h->wait_ms;
		h->wait_ms /= 2;
	}
	h->wait_ms *= 2;
	if (h->wait_ms < tune.cool_ms)
		h->wait_ms = tune.cool_ms;
	if (h->wait_ms > tune.max_cool_ms)
		h->wait_ms = tune.max_cool_ms;
out:
	h->until_ns = now + h->wait_ms * NS_PER_MS;
}

/* Return: whether that is too much for the file. */
static __always_inline bool count_breaks(struct heat *h, __u64 now, __u32 nr)
{
	__u64 period = tune.cool_ms * NS_PER_MS;
	int i;

	bpf_for(i, 0, 32) {
		if (!period || now < h->breaks_ns + period)
			break;
		h->breaks_ns += period;
		h->breaks -= (h->breaks + 3) / 4;
	}
	if (!h->breaks)
		h->breaks_ns = now;
	h->breaks += nr;
	return h->breaks >= tune.max_breaks;
}

/* Did somebody want other bytes there? */
static __always_inline bool is_write(__u32 reason)
{
	switch (reason) {
	case KSM_EXT_BROKEN_write_fault:
	case KSM_EXT_BROKEN_write:
	case KSM_EXT_BROKEN_truncate:
	case KSM_EXT_BROKEN_direct_io:
	case KSM_EXT_BROKEN_unshare:
		return true;
	}
	return false;
}

/* Pages in a row, as many as were broken one after the other */
SEC("struct_ops/broken")
void BPF_PROG(adaptive_broken, const struct ksm_ext_event *event)
{
	__u64 file = event->file, now = event->time_ns;
	__u64 range = event->index / BATCH;
	__u64 end = (event->index + event->nr - 1) / BATCH + 1;
	struct heat *h;
	int i;

	forget_unmerged(event);
	if (!is_write(event->reason))
		return;
	h = make_heat(file, WHOLE_FILE);
	if (h && count_breaks(h, now, event->nr))
		heat_up(h, now);
	bpf_for(i, 0, MAX_RANGES) {
		if (range + i >= end)
			break;
		h = make_heat(file, range + i);
		if (h)
			heat_up(h, now);
	}
}

static __always_inline bool wanted(const struct ksm_ext_file_stat *st)
{
	return !is_hot(st->id, WHOLE_FILE);
}

static __always_inline bool batch_wanted(__u64 nr)
{
	return !is_hot(at.file, at.index / BATCH);
}

/*
 * Hashing a file that changes all the time is in vain, too: four such looks are
 * as much as max_breaks.
 */
static __always_inline void looked(void)
{
	__u64 now = bpf_ktime_get_ns();
	struct heat *h;

	if (!at.known || at.before.mtime_ns == at.now.mtime_ns ||
	    at.merged > at.before.merged)
		return;
	h = make_heat(at.file, WHOLE_FILE);
	if (h && count_breaks(h, now, (tune.max_breaks + 3) / 4))
		heat_up(h, now);
}

SEC(".struct_ops.link")
struct ksm_ext_ops adaptive_ops = {
	.init = (void *)walk_init,
	.scan = (void *)walk_scan,
	.domain = (void *)walk_domain,
	.broken = (void *)adaptive_broken,
	.flags = KSM_EXT_EVENTS,
	.name = "adaptive",
};
