// SPDX-License-Identifier: GPL-2.0
/*
 * Policies that want to know, and programs that tell what they could.  Those
 * that merge see only the files whose inode numbers are in the map "domains".
 */
#include "vmlinux.h"
#include "ksm_ext.bpf.h"
#include "events.h"

char _license[] SEC("license") = "GPL";

/* Inode number -> trust domain; files that are not here are in domain 0. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u64);
} domains SEC(".maps");

/* Inode number of a file that was read -> how often it was handed out. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} handed SEC(".maps");

/* What merged() was told of, in all and last. */
__u64 merged_events;
struct ksm_ext_event merged_last;

/* Pages that broken() was told of. */
__u64 broken_pages;

/* What ask() found out. */
struct ksm_ext_file_stat stat;
struct ksm_ext_page_info info;
char path[256];
__s64 found_by_fd, found_by_ino;
__s32 stat_ret, info_ret, path_ret;

__s32 fresh_ret;		/* of somebody who may not take them */
__u64 deaf_scans;
__u32 pressure;
__s64 mergeable;		/* pages that a dry run found */

static __always_inline u64 domain_of(u64 ino)
{
	u64 *domain = bpf_map_lookup_elem(&domains, &ino);

	return domain ? *domain : 0;
}

SEC("struct_ops/domain")
u64 BPF_PROG(listed_domain, const struct ksm_ext_file_stat *file)
{
	return domain_of(file->ino);
}

/* Merge all listed files into the first one. */
static __always_inline s64 merge_listed(void)
{
	struct ksm_ext_file_stat st;
	u64 first = 0, *id;
	s64 sum = 0;
	int n;

	if (ksm_ext_discover() < 0)
		return 0;
	bpf_for_each(ksm_ext_file, id, 0) {
		u64 file = *id;

		if (ksm_ext_file_stat(file, &st, sizeof(st)) ||
		    !domain_of(st.ino) || !st.size)
			continue;
		if (!first) {
			first = file;
			continue;
		}
		n = ksm_ext_merge(first, 0, file, 0, (st.size + 4095) / 4096);
		if (n > 0)
			sum += n;
	}
	return sum;
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(merging_scan, const struct ksm_ext_scan_ctx *slice)
{
	mergeable = merge_listed();
	pressure = slice->pressure;
	return 1;
}

SEC("struct_ops/merged")
void BPF_PROG(note_merged, const struct ksm_ext_event *event)
{
	bpf_probe_read_kernel(&merged_last, sizeof(merged_last), event);
	merged_events++;
}

/* Waits for files to be read, for an hour. */
SEC("struct_ops.s/scan")
s32 BPF_PROG(fresh_scan, const struct ksm_ext_scan_ctx *slice)
{
	struct ksm_ext_file_stat st;
	u64 *id;

	bpf_for_each(ksm_ext_fresh, id) {
		u64 one = 1, *times;

		if (ksm_ext_file_stat(*id, &st, sizeof(st)))
			continue;
		times = bpf_map_lookup_elem(&handed, &st.ino);
		if (times)
			++*times;
		else
			bpf_map_update_elem(&handed, &st.ino, &one, BPF_ANY);
	}
	return 60 * 60 * 1000;
}

/* Return: whether to walk over files that were just read is allowed. */
static __noinline int walk_fresh(void)
{
	struct bpf_iter_ksm_ext_fresh it;
	int ret = bpf_iter_ksm_ext_fresh_new(&it);

	bpf_iter_ksm_ext_fresh_destroy(&it);
	return ret;
}

/* Did not ask for events. */
SEC("struct_ops.s/scan")
s32 BPF_PROG(deaf_scan, const struct ksm_ext_scan_ctx *slice)
{
	fresh_ret = walk_fresh();
	deaf_scans++;
	return 60 * 60 * 1000;
}

/* Never wants to rest. */
SEC("struct_ops.s/scan")
s32 BPF_PROG(greedy_scan, const struct ksm_ext_scan_ctx *slice)
{
	struct ksm_ext_file_stat st;
	int i;

	bpf_for(i, 0, 100000) {
		if (ksm_ext_file_stat(0, &st, sizeof(st)) == -ECANCELED)
			break;
	}
	return 0;
}

/* The two files that flooding_scan merges */
__u64 flood_dst, flood_src;
__u32 flood_pages;
__u64 flood_merged, flood_unmerged, flood_refused;

static __always_inline void count_flood(int n, u64 *pages)
{
	if (n > 0)
		*pages += n;
	else
		flood_refused++;
}

/* Merges, takes back, and asks for what it can not have, without a pause. */
SEC("struct_ops.s/scan")
s32 BPF_PROG(flooding_scan, const struct ksm_ext_scan_ctx *slice)
{
	u64 dst = flood_dst, src = flood_src;
	u32 nr = flood_pages;
	int i, n = 0;

	bpf_for(i, 0, 1 << 20) {
		u32 first = i % nr;

		n = ksm_ext_merge(dst, first, src, first, nr - first);
		count_flood(n, &flood_merged);
		n = ksm_ext_merge(src, first, dst, first, 1);
		count_flood(n, &flood_merged);
		/* Others' pages, nobody's, none */
		n = ksm_ext_merge(dst, 0, src, 1, nr);
		count_flood(n, &flood_merged);
		n = ksm_ext_merge(0, 0, src, 0, nr);
		count_flood(n, &flood_merged);
		n = ksm_ext_merge(dst, nr, src, nr, 1);
		count_flood(n, &flood_merged);
		n = ksm_ext_unmerge(src, first, 2);
		count_flood(n, &flood_unmerged);
		if (n == -ECANCELED)
			break;
	}
	return 0;
}

/* For scans that take long: how many thousand turns, and whether to stop. */
__u32 long_turns;
volatile __u32 enough;
volatile __u64 turns;		/* of all scans */
volatile __u64 long_scan;	/* the one that runs; 0 outside */

static __always_inline s32 scan_long(u64 scan, bool ask)
{
	struct ksm_ext_file_stat st;
	int i, j;

	long_scan = scan + 1;
	bpf_for(i, 0, long_turns) {
		bpf_for(j, 0, 1000)
			turns++;
		if (enough)
			break;
		if (ask &&
		    ksm_ext_file_stat(0, &st, sizeof(st)) == -ECANCELED)
			break;
	}
	long_scan = 0;
	return 0;
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(asking_scan, const struct ksm_ext_scan_ctx *slice)
{
	return scan_long(slice->slice, true);
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(burning_scan, const struct ksm_ext_scan_ctx *slice)
{
	return scan_long(slice->slice, false);
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(listening_scan, const struct ksm_ext_scan_ctx *slice)
{
	return 10;
}

SEC("struct_ops/broken")
void BPF_PROG(note_broken, const struct ksm_ext_event *event)
{
	broken_pages += event->nr;
}

SEC(".struct_ops.link")
struct ksm_ext_ops idle = {
	.domain = (void *)listed_domain,
	.name = "idle",
};

SEC(".struct_ops.link")
struct ksm_ext_ops merging = {
	.scan = (void *)merging_scan,
	.domain = (void *)listed_domain,
	.merged = (void *)note_merged,
	.name = "merging",
};

SEC(".struct_ops.link")
struct ksm_ext_ops listening = {
	.scan = (void *)listening_scan,
	.broken = (void *)note_broken,
	.domain = (void *)listed_domain,
	.name = "listening",
};

SEC(".struct_ops.link")
struct ksm_ext_ops dry = {
	.scan = (void *)merging_scan,
	.domain = (void *)listed_domain,
	.merged = (void *)note_merged,
	.flags = KSM_EXT_DRY_RUN,
	.name = "dry",
};

SEC(".struct_ops.link")
struct ksm_ext_ops fresh = {
	.scan = (void *)fresh_scan,
	.flags = KSM_EXT_EVENTS,
	.name = "fresh",
};

SEC(".struct_ops.link")
struct ksm_ext_ops deaf = {
	.scan = (void *)deaf_scan,
	.name = "deaf",
};

SEC(".struct_ops.link")
struct ksm_ext_ops greedy = {
	.scan = (void *)greedy_scan,
	.timeout_ms = 30000,
	.name = "greedy",
};

SEC(".struct_ops.link")
struct ksm_ext_ops burning = {
	.scan = (void *)burning_scan,
	.timeout_ms = 30000,
	.name = "burning",
};

SEC(".struct_ops.link")
struct ksm_ext_ops burning_too = {
	.scan = (void *)burning_scan,
	.timeout_ms = 30000,
	.name = "burning_too",
};

SEC(".struct_ops.link")
struct ksm_ext_ops flood = {
	.scan = (void *)flooding_scan,
	.domain = (void *)listed_domain,
	.timeout_ms = 30000,
	.name = "flood",
};

SEC(".struct_ops.link")
struct ksm_ext_ops asking = {
	.scan = (void *)asking_scan,
	.timeout_ms = 30000,
	.name = "asking",
};

SEC("syscall")
int ask(struct ask_args *args)
{
	s64 id;

	found_by_fd = args->fd < 0 ? 0 : ksm_ext_file_fd(args->fd);
	found_by_ino = ksm_ext_file_lookup(args->dev, args->ino, 0);
	id = args->fd < 0 ? found_by_ino : found_by_fd;
	stat_ret = ksm_ext_file_stat(id, &stat, sizeof(stat));
	info_ret = ksm_ext_page_info(id, args->index, &info, sizeof(info));
	path_ret = ksm_ext_file_path(id, path, sizeof(path));
	return 0;
}

SEC("syscall")
int steal(void *ctx)
{
	fresh_ret = walk_fresh();
	return 0;
}

/*
 * ---- all that is shared ----
 *
 * Aliases come file by file.  Roots are listed by their ids: aliases of the
 * same one have the same, which is all that is to be known of it.
 */

char listed_path[256];

SEC("iter.s/ksm_ext")
int list_aliases(struct bpf_iter__ksm_ext *ctx)
{
	struct ksm_ext_alias_info *info = ctx->info;
	char name[64] = "";

	if (!info)
		return 0;
	ksm_ext_file_name(info->file, name, sizeof(name));
	listed_path[0] = 0;
	ksm_ext_file_path(info->file, listed_path, sizeof(listed_path));
	BPF_SEQ_PRINTF(ctx->meta->seq, "%llu %u %u %llu %llu %llx %s %s\n",
		       info->index, info->nr, info->nr_sharing, info->domain,
		       info->ino, info->root, name, listed_path);
	return 0;
}
