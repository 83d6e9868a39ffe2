// SPDX-License-Identifier: GPL-2.0
/*
 * Programs by which ksmx asks the kernel which pages share, and with whom.
 */
#include "vmlinux.h"
#include "ksm_ext.bpf.h"
#include "look.h"

char _license[] SEC("license") = "GPL";

/* Answers that are too long for struct look_args */
struct look_page pages[LOOK_PAGES];
char path[LOOK_PATH];

/* Roots that look_aliases shall tell of, and whether it is to tell of all. */
bool all_roots;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} wanted SEC(".maps");

/* Shared pages by file, from count_aliases; of too many files, some are lost. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
} counts SEC(".maps");

SEC("syscall")
int look_file(struct look_args *args)
{
	s64 id = ksm_ext_file_fd(args->fd);

	args->err = id < 0 ? id : 0;
	args->id = id < 0 ? 0 : id;
	return 0;
}

SEC("syscall")
int look_pages(struct look_args *args)
{
	u64 id = args->id, index = args->index;
	struct ksm_ext_page_info info;
	u32 nr = args->nr;
	int err = 0, i;

	bpf_for(i, 0, LOOK_PAGES) {
		struct look_page *page = &pages[i];

		if (i >= nr)
			break;
		err = ksm_ext_page_info(id, index + i, &info, sizeof(info));
		if (err)
			break;
		page->root = info.root;
		page->state = info.state;
		page->refusal = info.refusal;
		page->nr_sharing = info.nr_sharing;
	}
	args->err = err;
	return 0;
}

SEC("syscall")
int look_path(struct look_args *args)
{
	struct ksm_ext_file_stat st;
	u64 id = args->id;
	int err;

	err = ksm_ext_file_stat(id, &st, sizeof(st));
	if (!err) {
		args->dev = st.dev;
		err = ksm_ext_file_path(id, path, sizeof(path));
	}
	args->err = err < 0 ? err : 0;
	return 0;
}

SEC("syscall")
int look_domain(struct look_args *args)
{
	u64 domain = 0;

	if (bpf_ksym_exists(ksm_ext_file_domain))
		args->err = ksm_ext_file_domain(args->id, &domain);
	else
		args->err = -EOPNOTSUPP;
	args->domain = domain;
	return 0;
}

SEC("iter.s/ksm_ext")
int look_aliases(struct bpf_iter__ksm_ext *ctx)
{
	struct ksm_ext_alias_info *info = ctx->info;
	struct look_alias alias = {};
	u64 root;

	if (!info)
		return 0;
	root = info->root;
	if (!all_roots && !bpf_map_lookup_elem(&wanted, &root))
		return 0;
	alias.root = root;
	alias.file = info->file;
	alias.index = info->index;
	alias.domain = info->domain;
	alias.nr = info->nr;
	alias.nr_sharing = info->nr_sharing;
	bpf_seq_write(ctx->meta->seq, &alias, sizeof(alias));
	return 0;
}

SEC("iter.s/ksm_ext")
int count_aliases(struct bpf_iter__ksm_ext *ctx)
{
	struct ksm_ext_alias_info *info = ctx->info;
	u64 file, one, *count;

	if (!info)
		return 0;
	file = info->file;
	one = info->nr;
	count = bpf_map_lookup_elem(&counts, &file);
	if (count)
		*count += one;
	else
		bpf_map_update_elem(&counts, &file, &one, BPF_ANY);
	return 0;
}
