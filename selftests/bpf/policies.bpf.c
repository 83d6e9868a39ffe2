// SPDX-License-Identifier: GPL-2.0
/*
 * Policies good and bad.  Those that scan see only the files whose inode
 * numbers are in the map "domains".
 */
#include "vmlinux.h"
#include "ksm_ext.bpf.h"
#include "policies.h"

char _license[] SEC("license") = "GPL";

/* Inode number -> trust domain; files that are not here are in domain 0. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u64);
} domains SEC(".maps");

/* The same of a policy to which these numbers mean something else. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u64);
} other_domains SEC(".maps");

/* What exit() was told, and how often it was called. */
__u32 exits;
__u32 told;
__u32 exit_kind;
__s32 exit_code;
char exit_msg[KSM_EXT_MSG_LEN];
char exit_dump[KSM_EXT_DUMP_LEN];

/* Where the quitter quits, and what it got told where it must not. */
enum { QUIT_IN_SCAN = 1, QUIT_IN_DOMAIN, QUIT_IN_MERGED, QUIT_IN_BROKEN };

__u32 quit_in;
__u32 dumps;
__s32 quit_in_init = 1, quit_in_dump = 1, quit_in_exit = 1, dump_in_scan = 1;
__s32 quit_with_bad_format, quit_with_half_a_number, quit_with_too_much;
__s32 last_dump;

static __always_inline u64 domain_of(const struct ksm_ext_file_stat *file)
{
	u64 ino = file->ino;
	u64 *domain = bpf_map_lookup_elem(&domains, &ino);

	return domain ? *domain : 0;
}

/*
 * Merge all files into the first one: page by page, or, claiming what is not
 * true, every page into the page before it.
 */
static __always_inline s32 scan_files(u64 lie)
{
	struct ksm_ext_file_stat st;
	u64 first = 0, pages, *id;

	if (ksm_ext_discover() < 0)
		return 1;
	bpf_for_each(ksm_ext_file, id, 0) {
		u64 file = *id;

		if (ksm_ext_file_stat(file, &st, sizeof(st)))
			continue;
		if (!domain_of(&st) || !st.size)
			continue;
		pages = (st.size + 4095) / 4096 - lie;
		if (pages > KSM_EXT_MAX_RUN)
			pages = KSM_EXT_MAX_RUN;
		if (!first)
			first = file;
		else
			ksm_ext_merge(first, 0, file, lie, pages);
	}
	return 1;
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(churn_scan, const struct ksm_ext_scan_ctx *slice)
{
	return scan_files(0);
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(liar_scan, const struct ksm_ext_scan_ctx *slice)
{
	return scan_files(1);
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(failing_scan, const struct ksm_ext_scan_ctx *slice)
{
	return -EIO;
}

__u64 turns;

/* Hears nothing, since it does not ask. */
SEC("struct_ops.s/scan")
s32 BPF_PROG(looping_scan, const struct ksm_ext_scan_ctx *slice)
{
	int i;

	bpf_for(i, 0, 1 << 22)
		turns++;
	return 0;
}

bool obedient;

/* Goes on much too long, or until a verb says that it has to end. */
SEC("struct_ops.s/scan")
s32 BPF_PROG(stalling_scan, const struct ksm_ext_scan_ctx *slice)
{
	__u64 end = bpf_ktime_get_ns() + 2000000000ull;
	struct ksm_ext_file_stat st;
	int i;

	bpf_for(i, 0, 1 << 23) {
		if (ksm_ext_file_stat(0, &st, sizeof(st)) != -ECANCELED)
			continue;
		told++;
		if (obedient || bpf_ktime_get_ns() > end)
			break;
	}
	return 0;
}

/* Sleeps on locks of others, again and again, whatever it is told. */
SEC("struct_ops.s/scan")
s32 BPF_PROG(sleeping_scan, const struct ksm_ext_scan_ctx *slice)
{
	int i;

	bpf_for(i, 0, 1 << 17)
		ksm_ext_discover();
	return 0;
}

SEC("struct_ops/domain")
u64 BPF_PROG(other_domain, const struct ksm_ext_file_stat *file)
{
	u64 ino = file->ino;
	u64 *domain = bpf_map_lookup_elem(&other_domains, &ino);

	return domain ? *domain : 0;
}

SEC("struct_ops/domain")
u64 BPF_PROG(listed_domain, const struct ksm_ext_file_stat *file)
{
	return domain_of(file);
}

SEC("struct_ops.s/exit")
void BPF_PROG(note_exit, const struct ksm_ext_exit_info *info)
{
	exits++;
	exit_kind = info->kind;
	exit_code = info->code;
	bpf_probe_read_kernel_str(exit_msg, sizeof(exit_msg), info->msg);
	bpf_probe_read_kernel_str(exit_dump, sizeof(exit_dump), info->dump);
}

/* ---- gives up, and prints more than there is room for ---- */

static __always_inline void quit(u32 where)
{
	if (quit_in == where)
		ksm_ext_exit(where, "in %s %d", "place", where);
}

SEC("struct_ops.s/init")
s32 BPF_PROG(quitter_init)
{
	quit_in_init = ksm_ext_exit(0, "too early");
	return 0;
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(quitter_scan, const struct ksm_ext_scan_ctx *slice)
{
	static const char plain[] = "no numbers";
	unsigned long long numbers[13] = {};	/* one more than there may be */

	quit_with_bad_format = ksm_ext_exit(0, "%z");
	quit_with_half_a_number = ksm_ext_exit_bstr(0, plain, numbers, 12);
	quit_with_too_much = ksm_ext_exit_bstr(0, plain, numbers,
					       sizeof(numbers));
	dump_in_scan = ksm_ext_dump("too early");
	quit(QUIT_IN_SCAN);
	scan_files(0);
	/* comes too late: the first cause wins */
	return quit_in == QUIT_IN_SCAN ? -EIO : 1;
}

SEC("struct_ops/domain")
u64 BPF_PROG(quitter_domain, const struct ksm_ext_file_stat *file)
{
	quit(QUIT_IN_DOMAIN);
	return domain_of(file);
}

SEC("struct_ops/merged")
void BPF_PROG(quitter_merged, const struct ksm_ext_event *event)
{
	quit(QUIT_IN_MERGED);
}

SEC("struct_ops/broken")
void BPF_PROG(quitter_broken, const struct ksm_ext_event *event)
{
	quit(QUIT_IN_BROKEN);
}

SEC("struct_ops.s/dump")
void BPF_PROG(quitter_dump)
{
	int i;

	dumps++;
	quit_in_dump = ksm_ext_exit(0, "too late");
	bpf_for(i, 0, 500)
		last_dump = ksm_ext_dump("line %d of %d\n", i, 500);
}

SEC("struct_ops.s/exit")
void BPF_PROG(quitter_exit, const struct ksm_ext_exit_info *info)
{
	quit_in_exit = ksm_ext_exit(0, "too late");
	exits++;
	exit_kind = info->kind;
	exit_code = info->code;
	bpf_probe_read_kernel_str(exit_msg, sizeof(exit_msg), info->msg);
	bpf_probe_read_kernel_str(exit_dump, sizeof(exit_dump), info->dump);
}

SEC("struct_ops.s/init")
s32 BPF_PROG(refusing_init)
{
	return -EPERM;
}

/* Takes its time. */
SEC("struct_ops.s/init")
s32 BPF_PROG(slow_init_init)
{
	int i;

	bpf_for(i, 0, 1 << 22)
		turns++;
	return 0;
}

/* No errno, be it because it is too much or too little. */
SEC("struct_ops.s/init")
s32 BPF_PROG(positive_init)
{
	return 1;
}

SEC("struct_ops.s/init")
s32 BPF_PROG(no_errno_init)
{
	return -4096;
}

/* ---- says something else each time it is asked ---- */

__u64 answers[2];		/* the last ones, for dst and src of a merge */
__u64 lawful, unlawful;		/* pages merged after they agreed, or not */
static __u32 asked;

SEC("struct_ops/domain")
u64 BPF_PROG(fickle_domain, const struct ksm_ext_file_stat *file)
{
	/* Two pairs that agree, one that does not, and one "never". */
	static const u8 moods[] = { 1, 1, 1, 2, 0, 2, 2, 0 };
	u32 now = asked++ % sizeof(moods);

	answers[0] = answers[1];
	answers[1] = moods[now];
	return answers[1];
}

SEC("struct_ops/merged")
void BPF_PROG(fickle_merged, const struct ksm_ext_event *event)
{
	if (answers[0] && answers[0] == answers[1])
		lawful += event->nr;
	else
		unlawful += event->nr;
}

/* ---- returns what it is told to ---- */

__s32 answer;

SEC("struct_ops.s/scan")
s32 BPF_PROG(answering_scan, const struct ksm_ext_scan_ctx *slice)
{
	scan_files(0);
	return answer;
}

/* ---- calls verbs as it is told to, whatever nonsense that is ---- */

struct call calls[MAX_CALLS];
__u64 call_domain;		/* what CALL_DOMAIN was told last */

/* What calls[0] came to where nothing is to be merged */
__s32 ret_in_init, ret_in_exit, ret_in_dump;

static __noinline s32 call(const struct call *c)
{
	/* As much as there may be, and one more */
	static __u64 hashes[KSM_EXT_MAX_RUN + 1];
	struct ksm_ext_page_info info = {};
	struct ksm_ext_file_stat st = {};
	char text[8] = {};
	u32 nr = c->nr;

	switch (c->verb) {
	case CALL_MERGE:
		return ksm_ext_merge(c->dst, c->dst_index, c->src, c->src_index,
				     nr);
	case CALL_UNMERGE:
		return ksm_ext_unmerge(c->dst, c->dst_index, nr);
	case CALL_HASH:
		if (nr > sizeof(hashes))
			break;
		return ksm_ext_hash(c->dst, c->dst_index, hashes, nr);
	case CALL_STAT:
		if (nr > sizeof(st))
			break;
		return ksm_ext_file_stat(c->dst, &st, sizeof(st) - nr);
	case CALL_NAME:
		if (nr > sizeof(text))
			break;
		return ksm_ext_file_name(c->dst, text, nr);
	case CALL_PATH:
		if (nr > sizeof(text))
			break;
		return ksm_ext_file_path(c->dst, text, nr);
	case CALL_PAGE:
		if (nr > sizeof(info))
			break;
		return ksm_ext_page_info(c->dst, c->dst_index, &info,
					 sizeof(info) - nr);
	case CALL_DOMAIN:
		return ksm_ext_file_domain(c->dst, &call_domain);
	}
	return 0;
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(calling_scan, const struct ksm_ext_scan_ctx *slice)
{
	u32 i;

	bpf_for(i, 0, MAX_CALLS)
		calls[i].ret = call(&calls[i]);
	return answer ?: 10;
}

SEC("struct_ops.s/init")
s32 BPF_PROG(calling_init)
{
	ret_in_init = call(&calls[0]);
	return 0;
}

SEC("struct_ops.s/dump")
void BPF_PROG(calling_dump)
{
	ret_in_dump = call(&calls[0]);
}

SEC("struct_ops.s/exit")
void BPF_PROG(calling_exit, const struct ksm_ext_exit_info *info)
{
	ret_in_exit = call(&calls[0]);
}

/* ---- good ones ---- */

/* What a policy has a worker do would go on when the policy is gone. */
extern int bpf_wq_init(struct bpf_wq *wq, void *p__map, unsigned int flags) __ksym;
extern int bpf_wq_set_callback_impl(struct bpf_wq *wq,
				    int (*callback)(void *map, int *key,
						    void *value),
				    unsigned int flags, void *aux__ign) __ksym;
extern int bpf_wq_start(struct bpf_wq *wq, unsigned int flags) __ksym;

struct work {
	struct bpf_wq wq;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, int);
	__type(value, struct work);
} works SEC(".maps");

__u32 worked;
__s64 work_discovers;
__s32 work_merges, work_hashes;

static int do_work(void *map, int *key, void *value)
{
	u64 hash;

	work_discovers = ksm_ext_discover();
	work_merges = ksm_ext_merge(1, 0, 2, 0, 1);
	work_hashes = ksm_ext_hash(1, 0, &hash, sizeof(hash));
	__sync_fetch_and_add(&worked, 1);
	return 0;
}

SEC("struct_ops.s/scan")
s32 BPF_PROG(employer_scan, const struct ksm_ext_scan_ctx *slice)
{
	int zero = 0;
	struct work *work = bpf_map_lookup_elem(&works, &zero);

	if (work && !slice->slice &&
	    !bpf_wq_init(&work->wq, &works, 0) &&
	    !bpf_wq_set_callback_impl(&work->wq, do_work, 0, NULL))
		bpf_wq_start(&work->wq, 0);
	return 1;
}

SEC(".struct_ops.link")
struct ksm_ext_ops employer = {
	.scan = (void *)employer_scan,
	.domain = (void *)listed_domain,
	.name = "employer",
};

SEC(".struct_ops.link")
struct ksm_ext_ops churn_a = {
	.scan = (void *)churn_scan,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "churn_a",
};

SEC(".struct_ops.link")
struct ksm_ext_ops churn_b = {
	.scan = (void *)churn_scan,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "churn_b",
};

SEC(".struct_ops.link")
struct ksm_ext_ops other = {
	.domain = (void *)other_domain,
	.name = "other",
};

SEC(".struct_ops.link")
struct ksm_ext_ops liar = {
	.scan = (void *)liar_scan,
	.domain = (void *)listed_domain,
	.name = "liar",
};

SEC(".struct_ops.link")
struct ksm_ext_ops no_domain = {
	.scan = (void *)churn_scan,
	.name = "no_domain",
};

SEC(".struct_ops.link")
struct ksm_ext_ops fickle = {
	.scan = (void *)churn_scan,
	.domain = (void *)fickle_domain,
	.merged = (void *)fickle_merged,
	.name = "fickle",
};

SEC(".struct_ops.link")
struct ksm_ext_ops answering = {
	.scan = (void *)answering_scan,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "answering",
};

SEC(".struct_ops.link")
struct ksm_ext_ops caller = {
	.init = (void *)calling_init,
	.scan = (void *)calling_scan,
	.domain = (void *)listed_domain,
	.dump = (void *)calling_dump,
	.exit = (void *)calling_exit,
	.name = "caller",
};

/* ---- those that are ejected ---- */

SEC(".struct_ops.link")
struct ksm_ext_ops failing = {
	.scan = (void *)failing_scan,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "failing",
};

SEC(".struct_ops.link")
struct ksm_ext_ops stalling = {
	.scan = (void *)stalling_scan,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.timeout_ms = 200,
	.name = "stalling",
};

SEC(".struct_ops.link")
struct ksm_ext_ops looping = {
	.scan = (void *)looping_scan,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.timeout_ms = 10,
	.name = "looping",
};

SEC(".struct_ops.link")
struct ksm_ext_ops sleeping = {
	.scan = (void *)sleeping_scan,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.timeout_ms = 20,
	.name = "sleeping",
};

SEC(".struct_ops.link")
struct ksm_ext_ops quitter = {
	.init = (void *)quitter_init,
	.scan = (void *)quitter_scan,
	.domain = (void *)quitter_domain,
	.merged = (void *)quitter_merged,
	.broken = (void *)quitter_broken,
	.dump = (void *)quitter_dump,
	.exit = (void *)quitter_exit,
	.name = "quitter",
};

/* ---- those that are refused ---- */

SEC(".struct_ops.link")
struct ksm_ext_ops refusing = {
	.init = (void *)refusing_init,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "refusing",
};

SEC(".struct_ops.link")
struct ksm_ext_ops no_name = {
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
};

SEC(".struct_ops.link")
struct ksm_ext_ops slash_in_name = {
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "../slash",
};

SEC(".struct_ops.link")
struct ksm_ext_ops endless_name = {
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = { [0 ... KSM_EXT_NAME_LEN - 1] = 'x' },
};

SEC(".struct_ops.link")
struct ksm_ext_ops long_timeout = {
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.timeout_ms = KSM_EXT_MAX_TIMEOUT_MS + 1,
	.name = "long_timeout",
};

SEC(".struct_ops.link")
struct ksm_ext_ops slow_init = {
	.init = (void *)slow_init_init,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.timeout_ms = 10,
	.name = "slow_init",
};

SEC(".struct_ops.link")
struct ksm_ext_ops positive = {
	.init = (void *)positive_init,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "positive",
};

SEC(".struct_ops.link")
struct ksm_ext_ops no_errno = {
	.init = (void *)no_errno_init,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "no_errno",
};

/* A letter to some */
SEC(".struct_ops.link")
struct ksm_ext_ops umlaut_in_name = {
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "b\xe4r",
};

SEC(".struct_ops.link")
struct ksm_ext_ops odd_flags = {
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.flags = 1U << 31,
	.name = "odd_flags",
};

/* Just as churn_a, but nobody would own it. */
SEC(".struct_ops")
struct ksm_ext_ops no_link = {
	.scan = (void *)churn_scan,
	.domain = (void *)listed_domain,
	.exit = (void *)note_exit,
	.name = "no_link",
};
