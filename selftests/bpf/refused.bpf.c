// SPDX-License-Identifier: GPL-2.0
/*
 * Programs that must not be loaded, each with a twin that differs in one thing
 * and is loaded.  The first word of a program's name says what it is, and so
 * what becomes of it.  None is loaded unless a test asks for it.
 */
#include "vmlinux.h"
#include "ksm_ext.bpf.h"

char _license[] SEC("license") = "GPL";

/* So that nothing is optimized away */
__u64 seen;

static struct ksm_ext_file_stat stat;
static struct ksm_ext_page_info info;
static __u64 hashes[1];
static char name[16];

/* ---- who may call a verb: policies and tools, where they may sleep ---- */

#define POLICIES(verb, call)						\
	SEC("?struct_ops.s/scan")					\
	s32 BPF_PROG(scan_##verb, const struct ksm_ext_scan_ctx *slice)	\
	{								\
		call;							\
		return 1;						\
	}								\
									\
	SEC("?struct_ops/domain")					\
	u64 BPF_PROG(atomic_##verb, const struct ksm_ext_file_stat *file) \
	{								\
		call;							\
		return 1;						\
	}								\
									\
	SEC("?syscall")							\
	int tool_##verb(void *ctx)					\
	{								\
		call;							\
		return 1;						\
	}

#define OTHERS(verb, call)						\
	SEC("?struct_ops.s/test_sleepable")				\
	int BPF_PROG(stranger_##verb, struct bpf_dummy_ops_state *state) \
	{								\
		call;							\
		return 1;						\
	}								\
									\
	SEC("?tp_btf/ksm_ext_merge")					\
	int BPF_PROG(trace_##verb)					\
	{								\
		call;							\
		return 0;						\
	}

#define LIST(kind, verb, call)						\
	SEC("?iter.s/ksm_ext")						\
	int kind##_##verb(struct bpf_iter__ksm_ext *ctx)		\
	{								\
		call;							\
		return 0;						\
	}

/* Who lists aliases may ask for facts, and nothing else. */
#define VERB(verb, call)						\
	POLICIES(verb, call)						\
	OTHERS(verb, call)						\
	LIST(list, verb, call)

#define FACT(verb, call)						\
	POLICIES(verb, call)						\
	OTHERS(verb, call)						\
	LIST(ask, verb, call)

#define WALK(kind, args...)						\
	do {								\
		u64 *id;						\
									\
		bpf_for_each(kind, id, ##args)				\
			seen += *id;					\
	} while (0)

/* The twin of all that are refused */
VERB(nothing, seen++)

VERB(discover, ksm_ext_discover())
VERB(files, WALK(ksm_ext_file, 0))
VERB(fresh, WALK(ksm_ext_fresh))
VERB(dump, ksm_ext_dump("no"))
VERB(hash, ksm_ext_hash(1, 0, hashes, sizeof(hashes)))
VERB(merge, ksm_ext_merge(1, 0, 1, 1, 1))
VERB(unmerge, ksm_ext_unmerge(1, 0, 1))

/* This one does not sleep. */
SEC("?struct_ops/domain")
u64 BPF_PROG(awake_exit, const struct ksm_ext_file_stat *file)
{
	ksm_ext_exit(1, "no");
	return 1;
}

OTHERS(exit, ksm_ext_exit(1, "no"))
LIST(list, exit, ksm_ext_exit(1, "no"))

FACT(stat, ksm_ext_file_stat(1, &stat, sizeof(stat)))
FACT(name, ksm_ext_file_name(1, name, sizeof(name)))
FACT(path, ksm_ext_file_path(1, name, sizeof(name)))
FACT(find, ksm_ext_file_lookup(1, 1, 0))
FACT(fd, ksm_ext_file_fd(0))
FACT(page, ksm_ext_page_info(1, 0, &info, sizeof(info)))
FACT(domain, ksm_ext_file_domain(1, &seen))

/* ---- verbs do not look whether there is something to fill in ---- */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64[16]);
} maybe SEC(".maps");

/* Nothing is in the map. */
#define NULLABLE(verb, call)						\
	SEC("?syscall")							\
	int null_##verb(void *ctx)					\
	{								\
		void *value = bpf_map_lookup_elem(&maybe, &seen);	\
									\
		call;							\
		return 0;						\
	}								\
									\
	SEC("?syscall")							\
	int tool_##verb##_checked(void *ctx)				\
	{								\
		void *value = bpf_map_lookup_elem(&maybe, &seen);	\
									\
		if (value)						\
			call;						\
		return 0;						\
	}

NULLABLE(hash, ksm_ext_hash(1, 0, value, 8))
NULLABLE(stat, ksm_ext_file_stat(1, value, sizeof(stat)))
NULLABLE(name, ksm_ext_file_name(1, value, 16))
NULLABLE(path, ksm_ext_file_path(1, value, 16))
NULLABLE(page, ksm_ext_page_info(1, 0, value, sizeof(info)))
NULLABLE(domain, ksm_ext_file_domain(1, value))

/* ---- what must not sleep ---- */

#define MEMBER(member, ret, arg, value)					\
	SEC("?struct_ops/" #member)					\
	ret BPF_PROG(awake_##member, const struct arg *told)		\
	{								\
		return value;						\
	}								\
									\
	SEC("?struct_ops.s/" #member)					\
	ret BPF_PROG(asleep_##member, const struct arg *told)		\
	{								\
		return value;						\
	}

MEMBER(domain, u64, ksm_ext_file_stat, 1)
MEMBER(merged, void, ksm_ext_event, )
MEMBER(broken, void, ksm_ext_event, )

/* ---- what a policy is told is not for it to change ---- */

#define ARGUMENT(member, ret, arg, field, value)			\
	SEC("?struct_ops/" #member)					\
	ret BPF_PROG(read_##member, struct arg *told)			\
	{								\
		seen = told->field;					\
		return value;						\
	}								\
									\
	SEC("?struct_ops/" #member)					\
	ret BPF_PROG(write_##member, struct arg *told)			\
	{								\
		told->field = seen;					\
		return value;						\
	}

ARGUMENT(scan, s32, ksm_ext_scan_ctx, pressure, 1)
ARGUMENT(domain, u64, ksm_ext_file_stat, uid, 1)
ARGUMENT(merged, void, ksm_ext_event, nr, )
ARGUMENT(broken, void, ksm_ext_event, nr, )
ARGUMENT(exit, void, ksm_ext_exit_info, code, )

SEC("?struct_ops/domain")
u64 read_ctx(u64 *ctx)
{
	seen = ctx[0];
	return 1;
}

SEC("?struct_ops/domain")
u64 replace_ctx(u64 *ctx)
{
	ctx[0] = seen;
	return 1;
}

/* The programs become members of these. */
SEC("?.struct_ops.link")
struct ksm_ext_ops subject = {
	.name = "subject",
};

SEC("?.struct_ops")
struct bpf_dummy_ops stranger = {
};
