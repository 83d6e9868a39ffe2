/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The walk that policies share: files that were just read come first; then
 * round after round over all known files, in bounded slices, past those with
 * nothing new.
 *
 * A policy includes this once and defines look_further(), which works on the
 * file that "at" describes.  Before that it may define
 *
 *	POLICY_TUNABLES(T)	tunables of its own
 *	HAVE_DOMAIN_OF		and then domain_of(): other trust domains than
 *				those of ksm_ext_owner_domain()
 *	HAVE_WANTED		and then wanted(): which files to look into now
 *	HAVE_LOOKED		and then looked(): to learn what came of it
 *	HAVE_PASSED		and then passed(): to see all files of a round
 *	HAVE_ROUND_ENDED	and then round_ended()
 *
 * Its struct ksm_ext_ops takes walk_init(), walk_scan(), walk_domain() and
 * walk_broken() from here, and KSM_EXT_EVENTS for the files that were just
 * read.
 */
#ifndef __KSM_EXT_WALK_BPF_H
#define __KSM_EXT_WALK_BPF_H

#include "ksm_ext.bpf.h"
#include "ksm_ext_progress.h"

#ifndef POLICY_TUNABLES
#define POLICY_TUNABLES(T)
#endif
#ifndef MATCH_TUNABLES
#define MATCH_TUNABLES(T)
#endif

/*
 * slice_pages:	work of one slice: pages, plus one for each file it passes
 * pause_ms:	wait between slices while there is work
 * idle_ms:	wait between rounds that merge nothing new
 */
#define TUNABLES(T)		\
	T(slice_pages, 4096)	\
	T(pause_ms, 0)		\
	T(idle_ms, 1000)	\
	MATCH_TUNABLES(T)	\
	POLICY_TUNABLES(T)

#include "ksm_ext_tunables.bpf.h"

/* A file with busy pages is looked into again after 1, 2, 4, ... rounds. */
#define MAX_BACKOFF	16

/* While a file is being read, it is looked into every 30 ms or so. */
#define BEING_READ_NS	500000000ULL

/* What a file was like when it was last looked into, by file id. */
struct file_record {
	__u64 size;
	__u64 mtime_ns;
	__u64 nr_cached;
	__u64 time_ns;		/* when that was */
	__u64 domain;
	__u64 merged;		/* pages that shared at the end */
	__u64 due;		/* round to look again, 0: when it changes */
	__u64 backoff;		/* rounds from the last look to that one */
	__u64 seen;		/* pages from the front that were all there */
	__u64 seen_merged;	/* those of them that shared */
	__u64 note;		/* the policy's own */
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

/* A file being looked into: it may take several slices. */
struct look {
	__u64 file;
	__u64 domain;
	__u64 index;		/* next page to look at */
	__u64 end;		/* last page + 1 */
	__s64 nr_cached;	/* pages not seen yet */
	__u64 merged;		/* pages that share */
	__u64 left;		/* pages that were busy */
	struct file_record before;
	struct file_record now;
	bool known;		/* there is a record from before */
	bool gap;		/* a page was not there: now.seen is final */
	bool fresh;		/* it was just read: not part of the round */
};

/* One file of the round and one that was just read may be under way. */
static struct look at;
static struct look other = { .fresh = true };

/* The round under way. */
static struct {
	__u64 after;		/* last file done with */
	__u64 files;
	__u64 pending;
	__u64 merged;
	__u64 sharing;		/* pages that share, new or not */
	__u64 ended_ns;		/* when the one before ended */
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

/* The trust domain of a file, 0 for "never merge". */
static __u64 domain_of(const struct ksm_ext_file_stat *st);
#ifndef HAVE_DOMAIN_OF
static __always_inline __u64 domain_of(const struct ksm_ext_file_stat *st)
{
	return ksm_ext_owner_domain(st);
}
#endif

/* Whether to look into this file now; if not, it is passed as if unknown. */
static bool wanted(const struct ksm_ext_file_stat *st);
#ifndef HAVE_WANTED
static __always_inline bool wanted(const struct ksm_ext_file_stat *st)
{
	return true;
}
#endif

/* All of the file that "at" describes was looked at. */
static void looked(void);
#ifndef HAVE_LOOKED
static __always_inline void looked(void)
{
}
#endif

/* The round is done with a file, of which this is the latest record. */
static void passed(const struct file_record *record);
#ifndef HAVE_PASSED
static __always_inline void passed(const struct file_record *record)
{
}
#endif

/*
 * All known files were passed; "round" tells of them once more.
 * Return: whether the next round shall begin at once.
 */
static bool round_ended(const struct ksm_ext_progress *p);
#ifndef HAVE_ROUND_ENDED
static __always_inline bool round_ended(const struct ksm_ext_progress *p)
{
	return false;
}
#endif

static __always_inline bool same_contents(const struct file_record *a,
					  const struct file_record *b)
{
	return a->size == b->size && a->mtime_ns == b->mtime_ns &&
	       a->domain == b->domain;
}

/* Is there anything in the file that was not looked at before? */
static __always_inline bool anything_new(const struct ksm_ext_progress *p)
{
	if (at.fresh)
		return true;
	if (at.before.due)
		return at.before.due <= p->rounds;
	return !same_contents(&at.before, &at.now) ||
	       at.before.nr_cached != at.now.nr_cached;
}

/*
 * A file that is being read from front to back: what was there a moment ago,
 * and not busy, is still there and need not be looked at again.
 */
static __always_inline bool being_read(void)
{
	return at.fresh && !at.before.due &&
	       same_contents(&at.before, &at.now) &&
	       at.before.seen == at.before.nr_cached &&
	       at.before.nr_cached < at.now.nr_cached &&
	       at.now.time_ns - at.before.time_ns < BEING_READ_NS;
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
	round.files += !at.fresh;

	__builtin_memset(&at.now, 0, sizeof(at.now));
	at.now.size = st.size;
	at.now.mtime_ns = st.mtime_ns;
	at.now.nr_cached = st.nr_cached;
	at.now.time_ns = bpf_ktime_get_ns();
	if (!st.nr_cached)
		return false;
	at.now.domain = domain_of(&st);
	if (!at.now.domain || !wanted(&st))
		return false;

	at.domain = at.now.domain;
	at.index = 0;
	at.end = (st.size + 4095) / 4096;
	at.nr_cached = st.nr_cached;
	at.merged = 0;
	at.left = 0;
	at.gap = false;

	before = bpf_map_lookup_elem(&files, &file);
	at.known = before;
	if (before) {
		at.before = *before;
		if (!anything_new(p)) {
			if (!at.fresh) {
				round.pending += !!before->due;
				round.sharing += at.before.merged;
				passed(&at.before);
			}
			return false;
		}
	} else {
		__builtin_memset(&at.before, 0, sizeof(at.before));
	}
	if (being_read()) {
		at.index = at.before.seen;
		at.nr_cached -= at.before.seen;
		at.merged = at.before.seen_merged;
	}

	at.file = file;
	p->total_looks++;
	return true;
}

/* The longer the more often that was in vain. */
static __always_inline void look_later(struct file_record *r, __u64 backoff,
				       const struct ksm_ext_progress *p)
{
	r->backoff = backoff * 2;
	if (!r->backoff)
		r->backoff = 1;
	if (r->backoff > MAX_BACKOFF)
		r->backoff = MAX_BACKOFF;
	r->due = p->rounds + r->backoff;
}

static __noinline void look_end(struct ksm_ext_progress *p)
{
	__u64 file = at.file;

	/* The kernel counts pairs that shared before, so did we last time. */
	if (at.merged > at.before.merged) {
		round.merged += at.merged - at.before.merged;
		p->total_merged += at.merged - at.before.merged;
	}

	if (at.fresh && at.before.due) {
		at.now.due = at.before.due;
		at.now.backoff = at.before.backoff;
	} else if (at.left) {
		look_later(&at.now, at.before.backoff, p);
		round.pending += !at.fresh;
	}
	at.now.merged = at.merged;
	looked();
	if (!at.fresh) {
		round.sharing += at.merged;
		passed(&at.now);
	}
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

/* From the file of the round to the one that was just read, or back. */
static __noinline void turn(void)
{
	struct look now = at;

	at = other;
	other = now;
}

/* Return: whether there are no more files that were just read. */
static __noinline bool visit_fresh(struct ksm_ext_progress *p)
{
	__u64 *file;

	if (at.file && !visit(at.file, p))
		return false;
	bpf_for_each(ksm_ext_fresh, file) {
		__u64 id = *file;

		if (!visit(id, p) || budget <= 0)
			return false;
	}
	return true;
}

static __noinline void round_end(struct ksm_ext_progress *p)
{
	bool at_once;

	p->rounds++;
	p->quiet = round.merged ? 0 : p->quiet + 1;
	p->files = round.files;
	p->pending = round.pending;
	p->merged = round.merged;
	at_once = round_ended(p);
	__builtin_memset(&round, 0, sizeof(round));
	if (!at_once)
		round.ended_ns = bpf_ktime_get_ns();
}

/* A walk that was cut short looks as if it were complete: ask about no file. */
static __noinline bool slice_canceled(void)
{
	struct ksm_ext_file_stat st;

	return ksm_ext_file_stat(0, &st, sizeof(st)) == -ECANCELED;
}

/* Milliseconds to go until the next round may begin. */
static __noinline __u32 round_wait(const struct ksm_ext_progress *p)
{
	__u64 wait_ms = p->quiet ? tune.idle_ms : tune.pause_ms;
	__u64 past_ms;

	if (!round.ended_ns)
		return 0;
	past_ms = (bpf_ktime_get_ns() - round.ended_ns) / 1000000;
	return past_ms < wait_ms ? wait_ms - past_ms : 0;
}

/* Go on with the round.  Return: milliseconds to wait for the next slice. */
static __always_inline __s32 visit_round(struct ksm_ext_progress *p)
{
	bool more = false;
	__u64 *file;
	__u32 wait;

	if (!round.started) {
		wait = round_wait(p);
		if (wait)
			return wait;
		if (ksm_ext_discover() < 0)
			return tune.idle_ms;
		round.started = true;
	}
	bpf_for_each(ksm_ext_file, file, round.after) {
		__u64 id = *file;

		if (budget <= 0 || !visit(id, p)) {
			more = true;
			break;
		}
		round.after = id;
	}
	if (more || slice_canceled())
		return tune.pause_ms;
	round_end(p);
	return round_wait(p);
}

/* One slice.  Return: milliseconds to wait for the next. */
static __always_inline __s32 walk(void)
{
	struct ksm_ext_progress *p;
	bool more;
	__u32 zero = 0;
	__s32 wait;

	p = bpf_map_lookup_elem(&progress, &zero);
	if (!p)
		return -ENOENT;

	tunables_get();
	canceled = false;
	budget = tune.slice_pages;
	turn();
	more = !visit_fresh(p);
	turn();
	if (canceled)
		return tune.pause_ms;

	/* However much is read, the round gets on, too. */
	if (budget < tune.slice_pages / 8)
		budget = tune.slice_pages / 8;
	wait = visit_round(p);
	return more ? tune.pause_ms : wait;
}

SEC("?struct_ops.s/init")
s32 BPF_PROG(walk_init)
{
	return tunables_begin();
}

SEC("?struct_ops.s/scan")
s32 BPF_PROG(walk_scan, const struct ksm_ext_scan_ctx *slice)
{
	return walk();
}

/* What was unmerged looks as before, but is to be looked into again. */
static __always_inline void forget_unmerged(const struct ksm_ext_event *event)
{
	__u64 file = event->file;

	if (event->reason == KSM_EXT_BROKEN_unmerge)
		bpf_map_delete_elem(&files, &file);
}

SEC("?struct_ops/broken")
void BPF_PROG(walk_broken, const struct ksm_ext_event *event)
{
	forget_unmerged(event);
}

SEC("?struct_ops/domain")
u64 BPF_PROG(walk_domain, const struct ksm_ext_file_stat *file)
{
	return domain_of(file);
}

#endif /* __KSM_EXT_WALK_BPF_H */
