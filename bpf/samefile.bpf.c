// SPDX-License-Identifier: GPL-2.0
/*
 * samefile - merge files that look like copies of each other
 *
 * Pairs files that have the same size and the same name (the last component of
 * the path), and merges them page by page at equal offsets, in runs as long as
 * they last.  Nothing is hashed: a page is read only to be compared with the
 * one page that it is likely to equal.
 *
 * For: several container images, chroots or virtual environments with the same
 * packages in them; snapshots and copies of trees.
 *
 * Bad: where equal pages are elsewhere: in files of another name or size (other
 * versions of a library, renamed files), at other offsets, within one file,
 * zero pages.  Those stay as they are.  A file with several hard links goes by
 * one of its names, maybe not the one that its copy goes by.  Where two files
 * differ often, the steps in which it looks for the next equal page (up to
 * max_skip pages) leave out short equal stretches.
 */
#include "vmlinux.h"

/* max_skip: longest step over pages that differ, are busy or not cached */
#define POLICY_TUNABLES(T) T(max_skip, 32)

#include "ksm_ext_walk.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "merge files of equal name and size, without hashing";

/* Longer names are compared up to here. */
#define NAME_LEN	56

struct likeness {
	__u64 size;
	__u64 domain;
	char name[NAME_LEN];
};

/* Files that look the same are merged with the first of these two. */
struct partners {
	__u64 file;
	__u64 nr_cached;	/* pages of the first in the page cache */
	__u64 other;		/* the partner for the first itself */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct likeness);
	__type(value, struct partners);
} lookalikes SEC(".maps");

/* The file being looked into and the one it is merged with. */
static struct {
	struct likeness like;
	__u64 file;
	__u64 partner;
	__u64 gap;		/* pages from here to at.index were skipped */
	__u64 skip;		/* length of the next step */
	bool replace;		/* the partner is used up */
} pair;

/* Return: whether there is a file to merge this one with. */
static __noinline bool pair_up(void)
{
	struct partners *p;
	int err;

	__builtin_memset(&pair, 0, sizeof(pair));
	pair.file = at.file;
	pair.gap = at.index;
	pair.skip = 1;
	pair.like.size = at.now.size;
	pair.like.domain = at.domain;
	err = ksm_ext_file_name(at.file, pair.like.name, NAME_LEN);
	canceled = err == -ECANCELED;
	if (err < 0)
		return false;

	p = bpf_map_lookup_elem(&lookalikes, &pair.like);
	if (!p) {
		struct partners first = {
			.file = at.file,
			.nr_cached = at.now.nr_cached,
		};

		bpf_map_update_elem(&lookalikes, &pair.like, &first, BPF_ANY);
		return false;
	}
	if (p->file == at.file) {
		p->nr_cached = at.now.nr_cached;
		pair.partner = p->other;
	} else {
		pair.partner = p->file;
		/* Let the later ones have the file with more to share. */
		pair.replace = at.now.nr_cached > p->nr_cached;
	}
	return pair.partner;
}

/* Leave the pair as the next file of this look shall find it. */
static __noinline void part(void)
{
	struct partners *p;

	p = bpf_map_lookup_elem(&lookalikes, &pair.like);
	if (!p || p->file == at.file)
		return;
	if (pair.replace) {
		p->other = pair.partner;
		p->file = at.file;
		p->nr_cached = at.now.nr_cached;
	} else {
		p->other = at.file;
	}
}

/* Return: whether there is another one to go on with, of three that are alike. */
static __noinline bool pair_again(void)
{
	struct partners *p = bpf_map_lookup_elem(&lookalikes, &pair.like);

	pair.replace = true;
	if (!p || !p->other || p->other == at.file || p->other == pair.partner)
		return false;
	pair.partner = p->other;
	return true;
}

/* Merge the pages before at.index that a long step left out. */
static __noinline void close_gap(void)
{
	__u64 index = at.index;

	bpf_repeat(KSM_EXT_MAX_RUN) {
		if (index <= pair.gap)
			break;
		index--;
		budget--;
		if (ksm_ext_merge(pair.partner, index, at.file, index, 1) != 1)
			break;
		at.merged++;
	}
}

static __always_inline void skip_ahead(void)
{
	at.index += pair.skip;
	pair.skip *= 2;
	if (pair.skip > tune.max_skip)
		pair.skip = tune.max_skip;
	if (!pair.skip)
		pair.skip = 1;
}

/* Return: whether it is worth going on with this partner. */
static __noinline bool merge_next(void)
{
	__u64 nr = at.end - at.index;
	int n;

	if (nr > KSM_EXT_MAX_RUN)
		nr = KSM_EXT_MAX_RUN;
	n = ksm_ext_merge(pair.partner, at.index, at.file, at.index, nr);
	if (n > 0) {
		close_gap();
		at.merged += n;
		at.index += n;
		pair.gap = at.index;
		pair.skip = 1;
		budget -= n;
		return true;
	}

	budget--;
	pair.gap = at.index + 1;
	switch (n) {
	case -EAGAIN:
	case -EBUSY:
	case -ENOMEM:
		/* So may be the pages around; there will be another look. */
		at.left++;
		skip_ahead();
		return true;
	case -EILSEQ:
	case -ENODATA:
		skip_ahead();
		return true;
	case -EMLINK:
		/* Its root is full: the next files start another with us. */
		pair.replace = true;
		at.index++;
		return true;
	case -ECANCELED:
		canceled = true;
		return false;
	default:
		/* The partner left memory, or may not be merged any more. */
		return pair_again();
	}
}

static __always_inline bool look_further(struct ksm_ext_progress *p)
{
	if (pair.file != at.file || !at.index) {
		if (!pair_up())
			return !canceled;
	}
	bpf_repeat(1 << 20) {
		if (at.index >= at.end || (__s64)at.merged >= at.nr_cached)
			break;
		if (budget <= 0)
			return false;
		if (!merge_next())
			break;
	}
	if (canceled)
		return false;
	part();
	return true;
}

SEC(".struct_ops.link")
struct ksm_ext_ops samefile_ops = {
	.init = (void *)walk_init,
	.scan = (void *)walk_scan,
	.domain = (void *)walk_domain,
	.broken = (void *)walk_broken,
	.flags = KSM_EXT_EVENTS,
	.name = "samefile",
};
