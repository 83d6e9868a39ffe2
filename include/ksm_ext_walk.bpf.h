/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The walk that policies share: round after round over all known files, in
 * bounded slices, past those with nothing new.
 *
 * A policy includes this once, defines look_further(), which works on the file
 * that "at" describes, and calls walk() from its scan member.
 */
#ifndef __KSM_EXT_WALK_BPF_H
#define __KSM_EXT_WALK_BPF_H

#include "ksm_ext.bpf.h"
#include "ksm_ext_progress.h"

/* Tunables, set at load: ksmx load NAME --set slice_pages=1024 */

/* Work of one slice: pages, plus one for each file it passes. */
const volatile unsigned int slice_pages = 4096;

/* Wait between slices while there is work, and between rounds without any. */
const volatile unsigned int pause_ms;
const volatile unsigned int idle_ms = 1000;

/* A file with busy pages is looked into again after 1, 2, 4, ... rounds. */
#define MAX_BACKOFF	16

/* What a file was like when it was last looked into, by file id. */
struct file_record {
	__u64 size;
	__u64 mtime_ns;
	__u64 nr_cached;
	__u64 domain;
	__u64 merged;		/* pages that shared at the end */
	__u64 due;		/* round to look again, 0: when it changes */
	__u64 backoff;		/* rounds from the last look to that one */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct file_record);
} files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ksm_ext_progress);
} progress SEC(".maps");

/* The file being looked into: it may take several slices. */
static struct {
	__u64 file;
	__u64 domain;
	__u64 index;		/* next page to look at */
	__u64 end;		/* last page + 1 */
	__s64 nr_cached;	/* pages not seen yet */
	__u64 merged;		/* pages that share */
	__u64 left;		/* pages that were busy */
	struct file_record before;
	struct file_record now;
} at;

/* The round under way. */
static struct {
	__u64 after;		/* last file done with */
	__u64 files;
	__u64 pending;
	__u64 merged;
	bool started;
} round;

/* What is left of the slice. */
static __s64 budget;

/* The kernel wants the slice to end. */
static bool canceled;

/*
 * Look at pages from at.index on, until at.end or until the slice is over;
 * count what happens in "at".  Return: whether the file is done with.
 */
static bool look_further(struct ksm_ext_progress *p);

static __always_inline bool changed(const struct file_record *a,
				    const struct file_record *b)
{
	return a->size != b->size || a->mtime_ns != b->mtime_ns ||
	       a->nr_cached != b->nr_cached || a->domain != b->domain;
}

/* Return: whether there may be something new in the file. */
static __noinline bool look_begin(__u64 file, struct ksm_ext_progress *p)
{
	struct ksm_ext_file_stat st = {};
	struct file_record *before;
	int err;

	at.file = 0;
	err = ksm_ext_file_stat(file, &st, sizeof(st));
	canceled = err == -ECANCELED;
	if (err)
		return false;
	round.files++;

	__builtin_memset(&at.now, 0, sizeof(at.now));
	at.now.size = st.size;
	at.now.mtime_ns = st.mtime_ns;
	at.now.nr_cached = st.nr_cached;
	at.now.domain = ksm_ext_owner_domain(&st);
	if (!at.now.domain || !st.nr_cached)
		return false;

	before = bpf_map_lookup_elem(&files, &file);
	if (before) {
		at.before = *before;
		if (before->due > p->rounds) {
			round.pending++;
			return false;
		}
		if (!before->due && !changed(before, &at.now))
			return false;
	} else {
		__builtin_memset(&at.before, 0, sizeof(at.before));
	}

	at.file = file;
	at.domain = at.now.domain;
	at.index = 0;
	at.end = (st.size + 4095) / 4096;
	at.nr_cached = st.nr_cached;
	at.merged = 0;
	at.left = 0;
	p->total_looks++;
	return true;
}

static __noinline void look_end(struct ksm_ext_progress *p)
{
	__u64 file = at.file;

	/* The kernel counts pairs that shared before, so did we last time. */
	if (at.merged > at.before.merged) {
		round.merged += at.merged - at.before.merged;
		p->total_merged += at.merged - at.before.merged;
	}

	if (at.left) {
		at.now.backoff = at.before.backoff * 2;
		if (!at.now.backoff)
			at.now.backoff = 1;
		if (at.now.backoff > MAX_BACKOFF)
			at.now.backoff = MAX_BACKOFF;
		at.now.due = p->rounds + at.now.backoff;
		round.pending++;
	}
	at.now.merged = at.merged;
	bpf_map_update_elem(&files, &file, &at.now, BPF_ANY);
	at.file = 0;
}

/* Return: whether the file is done with. */
static __noinline bool visit(__u64 file, struct ksm_ext_progress *p)
{
	budget--;
	if (at.file != file && !look_begin(file, p))
		return !canceled;
	if (!look_further(p))
		return false;
	look_end(p);
	return true;
}

static __noinline void round_end(struct ksm_ext_progress *p)
{
	p->rounds++;
	p->quiet = round.merged ? 0 : p->quiet + 1;
	p->files = round.files;
	p->pending = round.pending;
	p->merged = round.merged;
	__builtin_memset(&round, 0, sizeof(round));
}

/* A walk that was cut short looks as if it were complete: ask about no file. */
static __noinline bool slice_canceled(void)
{
	struct ksm_ext_file_stat st;

	return ksm_ext_file_stat(0, &st, sizeof(st)) == -ECANCELED;
}

/* One slice.  Return: milliseconds to wait for the next. */
static __always_inline __s32 walk(void)
{
	struct ksm_ext_progress *p;
	bool more = false;
	__u32 zero = 0;
	__u64 *file;

	p = bpf_map_lookup_elem(&progress, &zero);
	if (!p)
		return -ENOENT;

	if (!round.started) {
		if (ksm_ext_discover() < 0)
			return idle_ms;
		round.started = true;
	}
	canceled = false;
	budget = slice_pages;
	bpf_for_each(ksm_ext_file, file, round.after) {
		__u64 id = *file;

		if (budget <= 0 || !visit(id, p)) {
			more = true;
			break;
		}
		round.after = id;
	}
	if (more || slice_canceled())
		return pause_ms;
	round_end(p);
	return p->quiet ? idle_ms : pause_ms;
}

#endif /* __KSM_EXT_WALK_BPF_H */
