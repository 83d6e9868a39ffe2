/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tunables of a policy, each written down once:
 *
 *	#define TUNABLES(T)	\
 *		T(pause_ms, 0)	\
 *		T(idle_ms, 1000)
 *
 * Each is a constant, which "ksmx load --set" changes before the policy is
 * loaded, and a member of the only entry of the map "tunables", which "ksmx
 * set" changes while it runs.  The constants are where the map begins.
 */
#ifndef __KSM_EXT_TUNABLES_BPF_H
#define __KSM_EXT_TUNABLES_BPF_H

#include <bpf/bpf_helpers.h>

#ifndef TUNABLES
#error TUNABLES(T) has to be defined before
#endif

#define TUNABLE_CONSTANT(name, value) const volatile unsigned int name = value;
#define TUNABLE_MEMBER(name, value) __u32 name;
#define TUNABLE_BEGIN(name, value) .name = name,

TUNABLES(TUNABLE_CONSTANT)

struct tunables {
	TUNABLES(TUNABLE_MEMBER)
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tunables);
} tunables SEC(".maps");

/* What holds for this slice, whoever writes to the map meanwhile. */
static struct tunables tune;

/* To be called at the beginning of each slice. */
static __always_inline void tunables_get(void)
{
	__u32 zero = 0;
	struct tunables *now = bpf_map_lookup_elem(&tunables, &zero);

	if (now)
		tune = *now;
}

/* To be called once, from init. */
static __always_inline int tunables_begin(void)
{
	struct tunables begin = { TUNABLES(TUNABLE_BEGIN) };
	__u32 zero = 0;

	tune = begin;
	return bpf_map_update_elem(&tunables, &zero, &begin, BPF_ANY);
}

#endif /* __KSM_EXT_TUNABLES_BPF_H */
