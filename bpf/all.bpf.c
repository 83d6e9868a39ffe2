// SPDX-License-Identifier: GPL-2.0
/*
 * all - merge whatever is identical
 *
 * Hashes every clean cached page of every known file once, and merges it with
 * the last page seen that had the same hash: in another file or in the same
 * one, at any offset, zero pages included.  Pages that come in a row are merged
 * in one go where the pages they equal come in a row, too.
 *
 * For: machines short of memory with much of the same in many files, when it is
 * not known where (containers and chroots of different origin, build trees,
 * unpacked archives, backups).
 *
 * Bad: where little is equal, since each page is read and hashed to find that
 * out (a file is hashed again when its size, its mtime or its number of cached
 * pages changes); for files written all the time; where the distinct pages
 * in memory outnumber the entries of the map "candidates", since the pages that
 * drop out of it find no partner any more.  An entry takes about 80 bytes
 * whether used or not: give it about one for each page of page cache with
 * --set candidates.max_entries=N.
 */
#include "vmlinux.h"
#include "ksm_ext_walk.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "merge whatever is identical";

#define BATCH	KSM_EXT_MAX_RUN

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

/* Let page i of the batch be what later pages are merged with. */
static __always_inline void make_candidate(__u32 i)
{
	struct content key = {
		.hash = hashes[i & (BATCH - 1)],
		.domain = at.domain,
	};
	struct candidate c = { .file = at.file, .index = at.index + i };

	bpf_map_update_elem(&candidates, &key, &c, BPF_ANY);
}

/* The first page of the run could not be merged. */
static __noinline void refused(int err)
{
	struct content key = {
		.hash = hashes[run.first & (BATCH - 1)],
		.domain = at.domain,
	};
	struct candidate *c;

	switch (err) {
	case -ECANCELED:
	case -ENOMEM:
		at.left++;
		return;
	case -EBUSY:
		/* Nobody says which of the two it was. */
		at.left++;
		c = bpf_map_lookup_elem(&candidates, &key);
		if (c && ++c->busy < MAX_BUSY)
			return;
		break;
	}
	/* Its root is full, or it is not there or not the same any more. */
	make_candidate(run.first);
}

/* Return: whether candidates may have changed. */
static __noinline bool flush_run(void)
{
	bool any_refused = false;

	bpf_repeat(BATCH) {
		int n;

		if (!run.nr || run.nr > BATCH)
			break;
		n = ksm_ext_merge(run.dst.file, run.dst.index, at.file,
				  at.index + run.first, run.nr);
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
	struct content key = {
		.hash = hashes[i & (BATCH - 1)],
		.domain = at.domain,
	};
	struct candidate *c;

	c = bpf_map_lookup_elem(&candidates, &key);
	if (!c)
		return false;
	*found = *c;
	return true;
}

static __noinline void merge_page(__u32 i)
{
	struct candidate c = {};
	bool found;

	if (!hashes[i & (BATCH - 1)]) {
		flush_run();
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

static __always_inline bool look_further(struct ksm_ext_progress *p)
{
	bpf_repeat(1 << 20) {
		__u64 nr = at.end - at.index;
		__u32 i;
		int n;

		if (at.index >= at.end || at.nr_cached <= 0)
			break;
		if (budget <= 0)
			return false;

		if (nr > BATCH)
			nr = BATCH;
		n = ksm_ext_hash(at.file, at.index, hashes, nr * sizeof(__u64));
		if (n == -ECANCELED)
			return false;
		if (n < 0)
			break;
		if (n > 0) {
			p->total_hashed += n;
			at.nr_cached -= n;
			bpf_for(i, 0, nr)
				merge_page(i);
			flush_run();
		}
		at.index += nr;
		budget -= nr;
	}
	if (at.nr_cached > 0)
		at.left += at.nr_cached;
	return true;
}

SEC("struct_ops.s/scan")
__s32 BPF_PROG(all_scan, const struct ksm_ext_scan_ctx *slice)
{
	return walk();
}

SEC("struct_ops/domain")
__u64 BPF_PROG(all_domain, const struct ksm_ext_file_stat *file)
{
	return ksm_ext_owner_domain(file);
}

SEC(".struct_ops.link")
struct ksm_ext_ops all_ops = {
	.scan = (void *)all_scan,
	.domain = (void *)all_domain,
	.name = "all",
};
