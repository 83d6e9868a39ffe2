// SPDX-License-Identifier: GPL-2.0
/*
 * cgroup - merge within containers, not between them
 *
 * Works as the policy "all", with narrower trust domains: files share only
 * with files of the same container, and there only with those that "all" would
 * let them share with.  A container is a cgroup of the tunable level (2, as in
 * /machine.slice/NAME; the root is 0) with all below it; cgroups nearer to the
 * root stand for themselves.  A file belongs to the cgroup that is charged with
 * its first cached page: who read it first.
 *
 * Each container may have a budget: max_merged pages merged, and max_work pages
 * hashed per second, 0 for no limit.  The tunables are for all of them; an
 * entry of the map "budgets", by cgroup id, is for one.  The map "usage" tells
 * how much each has used.
 *
 * For: containers that must not know of each other, when some of them hold the
 * same data many times.
 *
 * Bad: for what containers have in common, which is usually most: it stays as
 * often in memory as there are containers.  Files of a cgroup that was removed
 * are never merged.  What a wider policy merged before stays merged, and who is
 * charged with it says little: "ksmx unload --unmerge" first.
 */
#include "vmlinux.h"

/*
 * level:	depth of the cgroups that are domains
 * max_merged:	pages that may be merged in each, 0: any number
 * max_work:	pages that may be hashed for each in a second, 0: any number
 */
#define POLICY_TUNABLES(T)	\
	T(level, 2)		\
	T(max_merged, 0)	\
	T(max_work, 0)

#define BATCH	64
#define HAVE_DOMAIN_OF
#define HAVE_WANTED
#define HAVE_PASSED
#define HAVE_BATCH_WANTED
#define HAVE_MERGE_LIMIT

#include "ksm_ext_match.bpf.h"

char _license[] SEC("license") = "GPL";
const char about[] = "merge within cgroups, not between them";

#define NS_PER_S	1000000000ULL

struct cgroup *bpf_cgroup_from_id(u64 id) __ksym;
struct cgroup *bpf_cgroup_ancestor(struct cgroup *cgrp, int level) __ksym;
void bpf_cgroup_release(struct cgroup *cgrp) __ksym;

struct budget {
	__u64 max_merged;
	__u64 max_work;
};

/* By the id of the cgroup; for those not here the tunables count. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct budget);
} budgets SEC(".maps");

/**
 * struct usage - what a container has used
 * @merged:	pages merged; those that were broken since are counted until the
 *		end of the round after
 * @work:	pages hashed in the second that began at @second_ns
 * @second_ns:	see @work
 * @round:	the round that @counted is about
 * @counted:	pages merged in the files that this round has passed so far
 * @carried:	pages merged in this round by looks that are not part of it
 */
struct usage {
	__u64 merged;
	__u64 work;
	__u64 second_ns;
	__u64 round;
	__u64 counted;
	__u64 carried;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct usage);
} usage SEC(".maps");

/* Who has which trust domain, so that no two ever have the same one. */
struct owner {
	__u64 domain;		/* that of ksm_ext_owner_domain() */
	__u64 cgroup;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct owner);
} domains SEC(".maps");

/* The container of a file, 0 if there is none (any more). */
static __always_inline __u64
container_of_file(const struct ksm_ext_file_stat *st)
{
	struct cgroup *cgroup, *container;
	__u64 id = 0;

	if (!st->cgroup)
		return 0;
	cgroup = bpf_cgroup_from_id(st->cgroup);
	if (!cgroup)
		return 0;
	container = bpf_cgroup_ancestor(cgroup, tune.level);
	if (container) {
		id = container->kn->id;
		bpf_cgroup_release(container);
	} else {
		id = st->cgroup;
	}
	bpf_cgroup_release(cgroup);
	return id;
}

static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93ULL;
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93ULL;
	return x ^ x >> 32;
}

/*
 * The same number each time that the policy is loaded, so that it goes on with
 * what it merged before.  Should two get the same, the second one has none.
 */
static __noinline __u64 number_domain(__u64 owner_domain, __u64 cgroup)
{
	struct owner owner = { .domain = owner_domain, .cgroup = cgroup };
	__u64 number = mix(mix(owner_domain) + cgroup);
	struct owner *taken;

	taken = bpf_map_lookup_elem(&domains, &number);
	if (!taken) {
		bpf_map_update_elem(&domains, &number, &owner, BPF_NOEXIST);
		taken = bpf_map_lookup_elem(&domains, &number);
	}
	if (!taken || taken->domain != owner_domain || taken->cgroup != cgroup)
		return 0;
	return number;
}

static __always_inline __u64 domain_of(const struct ksm_ext_file_stat *st)
{
	__u64 owner_domain = ksm_ext_owner_domain(st);
	__u64 cgroup = owner_domain ? container_of_file(st) : 0;

	return cgroup ? number_domain(owner_domain, cgroup) : 0;
}

/* What the container has used, brought up to this round and second. */
static __noinline struct usage *usage_of(__u64 cgroup)
{
	__u64 round_nr, now = bpf_ktime_get_ns();
	struct ksm_ext_progress *p;
	struct usage *u, none = {};
	__u32 zero = 0;

	p = bpf_map_lookup_elem(&progress, &zero);
	round_nr = p ? p->rounds : 0;
	none.round = round_nr;
	bpf_map_update_elem(&usage, &cgroup, &none, BPF_NOEXIST);
	u = bpf_map_lookup_elem(&usage, &cgroup);
	if (!u)
		return NULL;

	if (u->round != round_nr) {
		u->merged = u->counted + u->carried;
		u->counted = 0;
		u->carried = 0;
		u->round = round_nr;
	}
	if (now - u->second_ns >= NS_PER_S) {
		u->second_ns = now;
		u->work = 0;
	}
	return u;
}

static __always_inline struct budget budget_of(__u64 cgroup)
{
	struct budget *own = bpf_map_lookup_elem(&budgets, &cgroup);
	struct budget all = {
		.max_merged = tune.max_merged,
		.max_work = tune.max_work,
	};

	return own ? *own : all;
}

/* Remember the container, for as long as the file is. */
static __always_inline bool wanted(const struct ksm_ext_file_stat *st)
{
	at.now.note = container_of_file(st);
	return true;
}

/* Return: whether the budget of work allows that. */
static __always_inline bool batch_wanted(__u64 nr)
{
	struct budget b = budget_of(at.now.note);
	struct usage *u = usage_of(at.now.note);

	if (!u || (b.max_work && u->work + nr > b.max_work))
		return false;
	u->work += nr;
	return true;
}

static __always_inline __u32 merge_limit(__u32 nr)
{
	struct budget b = budget_of(at.now.note);
	struct usage *u;

	if (!b.max_merged)
		return nr;
	u = usage_of(at.now.note);
	if (!u || u->merged >= b.max_merged)
		return 0;
	return b.max_merged - u->merged < nr ? b.max_merged - u->merged : nr;
}

/* Called from within the verb: so that the next merge knows of this one. */
SEC("struct_ops/merged")
void BPF_PROG(cgroup_merged, const struct ksm_ext_event *event)
{
	struct usage *u;

	if (event->file != at.file)
		return;
	u = bpf_map_lookup_elem(&usage, &at.now.note);
	if (!u)
		return;
	u->merged += event->nr;
	if (at.fresh)
		u->carried += event->nr;
}

static __always_inline void passed(const struct file_record *record)
{
	struct usage *u = usage_of(record->note);

	if (u)
		u->counted += record->merged;
}

SEC(".struct_ops.link")
struct ksm_ext_ops cgroup_ops = {
	.init = (void *)walk_init,
	.scan = (void *)walk_scan,
	.domain = (void *)walk_domain,
	.broken = (void *)walk_broken,
	.merged = (void *)cgroup_merged,
	.flags = KSM_EXT_EVENTS,
	.name = "cgroup",
};
