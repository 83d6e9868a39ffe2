// SPDX-License-Identifier: GPL-2.0
/*
 * A policy that never merges anything by itself, and one program for each verb
 * by which a test merges exactly the pages it wants, when it wants.
 */
#include "vmlinux.h"
#include "ksm_ext.bpf.h"
#include "manual.h"

char _license[] SEC("license") = "GPL";

/* Inode number -> trust domain; files that are not here are in domain 1. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u64);
} domains SEC(".maps");

__u64 hashes[MANUAL_MAX_RUN];

/* Pages that broken() was told of, and merged(). */
__u64 broken_pages[KSM_EXT_NR_REASONS];
__u64 merged_pages;

SEC("struct_ops.s/scan")
s32 BPF_PROG(manual_scan, const struct ksm_ext_scan_ctx *slice)
{
	return 100;
}

SEC("struct_ops/domain")
u64 BPF_PROG(manual_domain, const struct ksm_ext_file_stat *file)
{
	u64 ino = file->ino;
	u64 *domain = bpf_map_lookup_elem(&domains, &ino);

	return domain ? *domain : 1;
}

SEC("struct_ops/merged")
void BPF_PROG(manual_merged, const struct ksm_ext_event *event)
{
	__sync_fetch_and_add(&merged_pages, event->nr);
}

SEC("struct_ops/broken")
void BPF_PROG(manual_broken, const struct ksm_ext_event *event)
{
	u32 reason = event->reason;

	if (reason < KSM_EXT_NR_REASONS)
		broken_pages[reason] += event->nr;
}

SEC(".struct_ops.link")
struct ksm_ext_ops manual = {
	.scan = (void *)manual_scan,
	.domain = (void *)manual_domain,
	.merged = (void *)manual_merged,
	.broken = (void *)manual_broken,
	.name = "manual",
};

SEC("syscall")
int manual_find(struct manual_args *args)
{
	struct ksm_ext_file_stat st;
	u64 ino = args->ino, found = 0, cached = 0;
	u32 dev = args->dev;
	s64 newest;
	u64 *id;

	newest = ksm_ext_discover();
	if (newest < 0)
		return newest;

	bpf_for_each(ksm_ext_file, id, 0) {
		if (ksm_ext_file_stat(*id, &st, sizeof(st)))
			continue;
		if (st.ino == ino && st.dev == dev) {
			found = st.id;
			cached = st.nr_cached;
		}
	}
	args->id = found;
	args->nr_cached = cached;
	return found ? 0 : -ENOENT;
}

SEC("syscall")
int manual_merge(struct manual_args *args)
{
	return ksm_ext_merge(args->dst, args->dst_index, args->src,
			     args->src_index, args->nr);
}

SEC("syscall")
int manual_unmerge(struct manual_args *args)
{
	return ksm_ext_unmerge(args->dst, args->dst_index, args->nr);
}

SEC("syscall")
int manual_hash(struct manual_args *args)
{
	u32 nr = args->nr;

	if (nr > MANUAL_MAX_RUN)
		return -EINVAL;
	return ksm_ext_hash(args->dst, args->dst_index, hashes,
			    nr * sizeof(hashes[0]));
}
