/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Merge what is equal, found by hashes: each clean cached page is hashed once
 * and merged with the last page seen that had the same hash, in another file or
 * in the same one, at any offset.  Pages that come in a row are merged in one
 * go where the pages they equal come in a row, too.
 *
 * A policy includes this instead of ksm_ext_walk.bpf.h, with all that can be
 * said there, and may define before
 *
 *	BATCH			pages looked at in one go, a power of two;
 *				batches stand at multiples of it
 *	HAVE_BATCH_WANTED	and then batch_wanted()
 *	HAVE_MERGE_LIMIT	and then merge_limit()
 */
#ifndef __KSM_EXT_MATCH_BPF_H
#define __KSM_EXT_MATCH_BPF_H

/* share_zeros:	1 to merge pages of zeros of different trust domains, too */
#define MATCH_TUNABLES(T) T(share_zeros, 0)

#include "ksm_ext_walk.bpf.h"

#ifndef BATCH
#define BATCH	KSM_EXT_MAX_RUN
#endif

struct content {
	__u64 hash;
	__u64 domain;
};

/* The page to merge with when the same content turns up again. */
struct candidate {
	__u64 file;
	__u32 index;
	__u32 busy;		/* how often it could not be merged with */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct content);
	__type(value, struct candidate);
} candidates SEC(".maps");

/* Refusals after which a busy candidate makes room: it may be so for good. */
#define MAX_BUSY	2

static __u64 hashes[BATCH];

/* Pages at.index + first.. of the file, equal to those of dst in a row. */
static struct {
	struct candidate dst;
	__u32 first;
	__u32 nr;
} run;

/*
 * Whether to look at the nr pages from at.index on.  If not, it may count them
 * in at.left, to have the file looked into again.
 */
static bool batch_wanted(__u64 nr);
#ifndef HAVE_BATCH_WANTED
static __always_inline bool batch_wanted(__u64 nr)
{
	return true;
}
#endif

/* How many of nr pages may be merged now. */
static __u32 merge_limit(__u32 nr);
#ifndef HAVE_MERGE_LIMIT
static __always_inline __u32 merge_limit(__u32 nr)
{
	return nr;
}
#endif

/* Domains may share pages of zeros, but then wait for each other's locks. */
static __always_inline struct content content_of(__u32 i)
{
	__u64 hash = hashes[i & (BATCH - 1)];
	bool for_all = hash == KSM_EXT_HASH_ZEROS && tune.share_zeros;

	return (struct content) {
		.hash = hash,
		.domain = for_all ? 0 : at.domain,
	};
}

/* Let page i of the batch be what later pages are merged with. */
static __always_inline void make_candidate(__u32 i)
{
	struct content key = content_of(i);
	struct candidate c = { .file = at.file, .index = at.index + i };

	bpf_map_update_elem(&candidates, &key, &c, BPF_ANY);
}

/* Another file than the one at hand has busy pages. */
static __noinline void others_left(__u64 file)
{
	struct file_record *r = bpf_map_lookup_elem(&files, &file);
	__u32 zero = 0;
	struct ksm_ext_progress *p = bpf_map_lookup_elem(&progress, &zero);

	if (other.file == file)
		other.left++;
	else if (r && p && !r->due)
		look_later(r, r->backoff, p);
}

/* The first page of the run could not be merged. */
static __noinline void refused(int err)
{
	struct content key = content_of(run.first);
	struct candidate *c;

	switch (err) {
	case -ECANCELED:
	case -ENOMEM:
		at.left++;
		return;
	case -EAGAIN:
	case -EBUSY:
		/* Nobody says which of the two it was. */
		at.left++;
		c = bpf_map_lookup_elem(&candidates, &key);
		if (c && ++c->busy < MAX_BUSY)
			return;
		/* If it was this page, that one has to come and find it. */
		others_left(run.dst.file);
		break;
	}
	/* Its root is full, or it is not there or not the same any more. */
	make_candidate(run.first);
}

/* The run is not to be merged: count what shares already. */
static __noinline void count_shared(void)
{
	struct ksm_ext_page_info info;
	__u32 i;

	bpf_for(i, 0, run.nr) {
		if (!ksm_ext_page_info(at.file, at.index + run.first + i, &info,
				       sizeof(info)) &&
		    info.state == KSM_EXT_PAGE_SHARED && info.nr_sharing > 1)
			at.merged++;
		else
			at.left++;
	}
}

/* Return: whether candidates may have changed. */
static __noinline bool flush_run(void)
{
	bool any_refused = false;

	bpf_repeat(BATCH) {
		__u32 may;
		int n;

		if (!run.nr || run.nr > BATCH)
			break;
		may = merge_limit(run.nr);
		if (!may) {
			count_shared();
			break;
		}
		n = ksm_ext_merge(run.dst.file, run.dst.index, at.file,
				  at.index + run.first, may);
		if (n > 0) {
			at.merged += n;
		} else {
			refused(n);
			any_refused = true;
			n = 1;
		}
		run.dst.index += n;
		run.first += n;
		run.nr -= n;
	}
	run.nr = 0;
	return any_refused;
}

static __noinline bool find_candidate(__u32 i, struct candidate *found)
{
	struct content key = content_of(i);
	struct candidate *c;

	c = bpf_map_lookup_elem(&candidates, &key);
	if (!c)
		return false;
	*found = *c;
	return true;
}

/* From page i of the batch on, the file has to be looked at again. */
static __noinline void note_gap(__u32 i)
{
	if (at.gap)
		return;
	at.gap = true;
	at.now.seen = at.index + i;
	at.now.seen_merged = at.merged;
}

static __noinline void merge_page(__u32 i)
{
	struct candidate c = {};
	bool found;

	if (!hashes[i & (BATCH - 1)]) {
		flush_run();
		note_gap(i);
		return;
	}
	found = find_candidate(i, &c);
	if (found && run.nr && c.file == run.dst.file &&
	    c.index == run.dst.index + run.nr) {
		run.nr++;
		return;
	}
	if (flush_run())
		found = find_candidate(i, &c);

	if (!found) {
		make_candidate(i);
	} else if (c.file != at.file || c.index != at.index + i) {
		run.dst = c;
		run.first = i;
		run.nr = 1;
	}
}

/* Return: whether to go on with the file. */
static __always_inline bool look_at_batch(struct ksm_ext_progress *p, __u64 nr)
{
	__u32 i;
	int n;

	n = ksm_ext_hash(at.file, at.index, hashes, nr * sizeof(__u64));
	canceled = n == -ECANCELED;
	if (n < 0)
		return false;
	if (n > 0) {
		p->total_hashed += n;
		at.nr_cached -= n;
		bpf_for(i, 0, nr)
			merge_page(i);
		flush_run();
	} else {
		note_gap(0);
	}
	return true;
}

static __always_inline bool look_further(struct ksm_ext_progress *p)
{
	bpf_repeat(1 << 20) {
		__u64 nr = BATCH - (at.index & (BATCH - 1));

		if (at.index >= at.end || at.nr_cached <= 0)
			break;
		if (budget <= 0)
			return false;
		if (nr > at.end - at.index)
			nr = at.end - at.index;

		if (!batch_wanted(nr)) {
			note_gap(0);
			budget--;
		} else if (look_at_batch(p, nr)) {
			budget -= nr;
		} else if (canceled) {
			return false;
		} else {
			break;
		}
		at.index += nr;
	}
	if (at.nr_cached > 0)
		at.left += at.nr_cached;
	note_gap(0);
	return true;
}

#endif /* __KSM_EXT_MATCH_BPF_H */
