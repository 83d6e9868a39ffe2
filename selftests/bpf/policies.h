/* SPDX-License-Identifier: GPL-2.0 */
/* What the policy "caller" in policies.bpf.c is to call, for both sides. */
#ifndef POLICIES_H
#define POLICIES_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

enum call_verb {
	CALL_NONE, CALL_MERGE, CALL_UNMERGE, CALL_HASH, CALL_STAT, CALL_NAME,
	CALL_PATH, CALL_PAGE, CALL_DOMAIN,
};

#define MAX_CALLS 64

struct call {
	__u32 verb;		/* enum call_verb */
	__s32 ret;		/* what came of it */
	__u64 dst, dst_index;	/* or the only file */
	__u64 src, src_index;
	__u32 nr;		/* pages; bytes; too few bytes by so many */
};

#endif /* POLICIES_H */
